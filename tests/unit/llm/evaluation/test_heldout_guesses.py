"""Held-out guesses against brute force: one window at a time, all logits, float64."""

import numpy as np
import pytest
import torch

from llm.data.shards import SHARDS_FILE, ShardWriter, TokenShards, shards_json
from llm.data.span_corruption import SpanCorruption
from llm.evaluation.heldout_guesses import Guesses, guesses, window_count
from llm.models.load import build
from llm.models.presets import model_config
from llm.tokenizer.special import ADDED_PIECES
from llm.training.objectives import corrupted_spans, masked_tokens

TEXT_IDS, EOS, WINDOW = 300, 3, 24
VIEWS = {
    "t5-tiny": corrupted_spans(SpanCorruption(), seed=0, text_ids=TEXT_IDS),
    "bert-tiny": masked_tokens(0.15, seed=0, text_ids=TEXT_IDS),
}


@pytest.fixture
def shards(tmp_path):
    """Of few different tokens, so that some guess is right; some shards are shorter than a window."""
    random = np.random.default_rng(0)
    with ShardWriter(tmp_path, "heldout", "00000", TEXT_IDS, EOS, shard_bytes=160) as writer:
        for length in (90, 10, 79, 30, 5, 60, 130):
            ids = random.integers(8, 14, length)
            writer.add(ids, text_bytes=3 * len(ids))
    (tmp_path / SHARDS_FILE).write_bytes(shards_json(TEXT_IDS, "f" * 64, EOS, {"heldout": writer.shards}))
    shards = TokenShards.open(tmp_path, "heldout")
    assert min(shards.shard_tokens) < WINDOW
    return shards


@pytest.fixture(params=VIEWS)
def preset(request):
    return request.param


@pytest.fixture
def model(preset):
    torch.set_num_threads(1)
    config = model_config(preset, TEXT_IDS + len(ADDED_PIECES[model_config(preset).family]))
    model = build(config).to_empty(device="cpu")
    model.init_weights(seed=1)
    with torch.no_grad():
        model.embed.weight *= 10  # Far from uniform, so that a wrong target shows.
        if preset == "bert-tiny":
            model.head_bias[8:14] += torch.arange(6)
    return model


def brute_force(model, shards, views):
    """(predicted, nats, right) of each window, in order."""
    model, windows = model.double(), []
    vocab_size = model.config.vocab_size
    for shard, tokens in enumerate(shards.shard_tokens):
        for start in range(0, int(tokens) - WINDOW + 1, WINDOW):
            row = np.array(shards.read(shard, start, WINDOW), dtype=np.int64)
            *given, targets = views(row[None], len(windows))
            log_p = model(*given)[0, :, :vocab_size].log_softmax(-1)
            places = [place for place, target in enumerate(targets[0].tolist()) if target >= 0]
            nats = -sum(log_p[place, targets[0, place]].item() for place in places)
            right = sum(log_p[place].argmax().item() == targets[0, place].item() for place in places)
            windows.append((len(places), nats, right))
    return windows


@pytest.mark.parametrize(("batch_size", "limit"), [(1, None), (4, None), (100, None), (2, 5), (3, 1)])
@torch.no_grad()
def test_equals_brute_force(preset, model, shards, batch_size, limit):
    found = guesses(model, shards, WINDOW, VIEWS[preset], batch_size, limit)
    windows = brute_force(model, shards, VIEWS[preset])
    assert len(windows) == window_count(shards, WINDOW)
    count = min(limit or len(windows), len(windows))
    chosen = [windows[index * len(windows) // count] for index in range(count)]
    predicted, nats, right = (sum(column) for column in zip(*chosen, strict=True))
    assert (found.predicted, found.right) == (predicted, right)
    assert found.loss == pytest.approx(nats / predicted, rel=1e-5)
    assert limit == 1 or right > 0


def test_the_parts_of_ranks_are_all_windows_once(preset, model, shards):
    one, other, every = (
        guesses(model, shards, WINDOW, VIEWS[preset], 4, share=share) for share in ((0, 2), (1, 2), None)
    )
    assert (one + other).loss == pytest.approx(every.loss, rel=1e-6)
    assert (one + other).predicted == every.predicted
    assert one.predicted > 0 < other.predicted


def test_guesses_of_several_splits_are_weighted_by_what_was_predicted():
    together = Guesses(10, 20.0, 5) + Guesses(30, 30.0, 25)
    assert (together.loss, together.accuracy) == (1.25, 0.75)
