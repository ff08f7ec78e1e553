"""Bits per byte against a brute-force sum, token by token, in float64."""

import math

import numpy as np
import pytest
import torch

from llm.data.shards import SHARDS_FILE, ShardWriter, TokenShards, shards_json
from llm.evaluation import bits_per_byte as module
from llm.evaluation.bits_per_byte import bits_per_byte, unigram_bits_per_byte, windows
from llm.models.decoder import Decoder
from llm.models.presets import model_config

VOCAB, EOS, LENGTH = 90, 3, 16


@pytest.fixture
def splits(tmp_path):
    """Two splits of random documents, held-out in two shards; 3 bytes of text a token."""
    random = np.random.default_rng(0)
    recorded = {}
    for split, count in (("train", 30), ("heldout", 9)):
        with ShardWriter(tmp_path, split, "00000", VOCAB, EOS, shard_bytes=300) as writer:
            for _ in range(count):
                ids = random.integers(4, VOCAB, random.integers(5, 40))
                writer.add(ids, text_bytes=3 * len(ids))
        recorded[split] = writer.shards
    (tmp_path / SHARDS_FILE).write_bytes(shards_json(VOCAB, "fingerprint", EOS, recorded))
    assert len(recorded["heldout"]) > 1
    return {split: TokenShards.open(tmp_path, split) for split in recorded}


@pytest.fixture
def model():
    torch.set_num_threads(1)
    model = Decoder(model_config("tiny-100k", VOCAB, d_model=32, d_ff=48))
    model.init_weights(seed=0)
    with torch.no_grad():
        model.embed.weight *= 20  # Far from uniform, so that a wrong target or context shows.
    return model


def brute_force_bits(model, shards, opening_id=None):
    """Σ −log₂ p(token), each from its own forward pass over the window before it: half the length, and more
    up to where the next window begins. With opening_id, over what is of the token's own document there.
    """
    model, bits, scored = model.double(), 0.0, 0
    for shard, count in enumerate(shards.shard_tokens):
        stream = [EOS, *shards.read(shard, 0, count).tolist()]
        for index in range(1, len(stream)):
            window_start = max(0, (index - 1) // (LENGTH // 2) * (LENGTH // 2) - LENGTH // 2)
            before = stream[window_start:index]
            if opening_id in before:
                before = before[len(before) - 1 - before[::-1].index(opening_id) :]
            context = torch.tensor([before])
            log_p = model(context)[0, -1, :VOCAB].log_softmax(-1)
            bits -= log_p[stream[index]].item() / math.log(2)
            scored += 1
    assert scored == shards.tokens
    return bits


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_equals_brute_force(model, splits, batch_size):
    actual = bits_per_byte(model, splits["heldout"], LENGTH, batch_size)
    with torch.no_grad():
        expected = brute_force_bits(model, splits["heldout"]) / splits["heldout"].bytes
    assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_documents_of_a_row_do_not_see_each_other(model, splits, batch_size):
    heldout = splits["heldout"]
    actual = bits_per_byte(model, heldout, LENGTH, batch_size, opening_id=EOS)
    with torch.no_grad():
        expected = brute_force_bits(model, heldout, opening_id=EOS) / heldout.bytes
        with_others = brute_force_bits(model, heldout) / heldout.bytes
    assert actual == pytest.approx(expected, rel=1e-5)
    assert actual != pytest.approx(with_others, rel=1e-3)


def test_a_model_that_knows_nothing_needs_log2_vocab_bits_a_token(model, splits):
    with torch.no_grad():
        model.embed.weight.zero_()
    heldout = splits["heldout"]
    expected = math.log2(VOCAB) * heldout.tokens / heldout.bytes
    assert bits_per_byte(model, heldout, LENGTH, 4) == pytest.approx(expected, rel=1e-6)
    assert bits_per_byte(model, heldout, LENGTH, 4, limit=3) == pytest.approx(expected, rel=1e-6)


def test_unigram_by_counting(splits):
    train, heldout = splits["train"], splits["heldout"]
    seen = [t for s, n in enumerate(train.shard_tokens) for t in train.read(s, 0, n).tolist()]
    bits = 0.0
    for shard, count in enumerate(heldout.shard_tokens):
        for token in heldout.read(shard, 0, count).tolist():
            bits -= math.log2((seen.count(token) + 1) / (len(seen) + VOCAB))
    assert unigram_bits_per_byte(train, heldout, VOCAB) == pytest.approx(bits / heldout.bytes, rel=1e-12)


@pytest.mark.parametrize("counted", [1, 4, 1000])
def test_unigram_by_counting_evenly_spaced_parts(splits, monkeypatch, counted):
    monkeypatch.setattr(module, "_PART_TOKENS", 50)
    monkeypatch.setattr(module, "_COUNTED_PARTS", counted)
    train, heldout = splits["train"], splits["heldout"]
    parts = [
        train.read(shard, start, min(50, tokens - start)).tolist()
        for shard, tokens in enumerate(train.shard_tokens.tolist())
        for start in range(0, tokens, 50)
    ]
    assert len(parts) > 2 * 4
    chosen = parts if counted > len(parts) else [parts[i * len(parts) // counted] for i in range(counted)]
    seen = [token for part in chosen for token in part]
    met = [t for s, n in enumerate(heldout.shard_tokens) for t in heldout.read(s, 0, n).tolist()]
    bits = -sum(math.log2((seen.count(token) + 1) / (len(seen) + VOCAB)) for token in met)
    assert unigram_bits_per_byte(train, heldout, VOCAB) == pytest.approx(bits / heldout.bytes, rel=1e-12)


@pytest.mark.parametrize("limit", [None, 1, 7, 1000])
def test_windows_cover_each_token_once(limit):
    shard_tokens = [33, 16, 1, 100]
    every = windows(shard_tokens, 16)
    covered = [(w.shard, w.start + i) for w in every for i in range(w.length)]
    assert sorted(covered) == [(s, t) for s, n in enumerate(shard_tokens) for t in range(n)]
    chosen = windows(shard_tokens, 16, limit)
    assert len(chosen) == min(limit or len(every), len(every))
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(every)
