"""Shards read back what was written; a batch is what the order names; another stream is refused."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.loader import TokenLoader
from llm.data.order import Order
from llm.data.shards import SHARDS_FILE, ShardWriter, TokenShards, shards_json, token_dtype


def write(root, documents, vocab_size=300, shard_bytes=64):
    splits = {}
    for split in ("train", "heldout"):
        with ShardWriter(root, split, "00000", vocab_size, eos_id=3, shard_bytes=shard_bytes) as writer:
            for document in documents:
                writer.add(np.array(document, dtype=np.int32), text_bytes=2 * len(document))
        splits[split] = writer.shards
    (root / SHARDS_FILE).write_bytes(shards_json(vocab_size, "f" * 64, 3, splits))
    return TokenShards.open(root, "train")


documents = st.lists(st.lists(st.integers(4, 299), max_size=40), min_size=1, max_size=12)


@given(documents=documents, vocab_size=st.sampled_from([300, 65_536, 65_537, 200_000]))
@settings(max_examples=60, deadline=None)
def test_round_trip(tmp_path_factory, documents, vocab_size):
    shards = write(tmp_path_factory.mktemp("tokens"), documents, vocab_size)
    read = []
    for k, tokens in enumerate(shards.shard_tokens):
        stream, ends = shards.read(k, 0, tokens), shards.document_ends(k).tolist()
        read += [stream[a:b].tolist() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        assert tokens * shards.dtype.itemsize <= 64 or len(ends) == 1
    assert read == [[*document, 3] for document in documents]
    assert shards.documents == len(documents)
    assert shards.bytes == sum(2 * len(document) for document in documents)
    assert shards.dtype == (np.uint16 if vocab_size <= 65_536 else np.uint32)


def test_same_documents_make_the_same_bytes_wherever_they_lie(tmp_path):
    first, second = (write(tmp_path / name, [[5, 6, 7], [8] * 50, [9]]) for name in "ab")
    assert first.fingerprint == second.fingerprint
    names = sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*.*"))
    assert names == sorted(str(p.relative_to(tmp_path / "b")) for p in (tmp_path / "b").rglob("*.*"))
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    assert write(tmp_path / "c", [[5, 6, 7], [8] * 50, [10]]).fingerprint != first.fingerprint


@given(lengths=st.lists(st.integers(0, 40), max_size=20), cuts=st.lists(st.integers(0, 20), max_size=3))
@settings(max_examples=100, deadline=None)
def test_documents_added_together_or_one_by_one_make_the_same_shards(tmp_path_factory, lengths, cuts):
    single, together = (tmp_path_factory.mktemp("tokens") for _ in range(2))
    texts = [np.arange(4, 4 + length) for length in lengths]
    with ShardWriter(single, "train", "00000", 300, eos_id=3, shard_bytes=64) as one_by_one:
        for text in texts:
            one_by_one.add(text, text_bytes=len(text))
    with ShardWriter(together, "train", "00000", 300, eos_id=3, shard_bytes=64) as batches:
        borders = [0, *sorted(min(cut, len(texts)) for cut in cuts), len(texts)]
        for first, last in pairwise(borders):
            ids = [np.append(text, 3) for text in texts[first:last]]
            ends = np.cumsum([len(text) for text in ids], dtype=np.int64)
            sizes = np.array(lengths[first:last], dtype=np.int64)
            batches.add_documents(np.concatenate([*ids, np.empty(0, int)]), ends, sizes)
    assert one_by_one.shards == batches.shards
    for shard in batches.shards:
        for suffix in (".tok", ".idx"):
            name = Path(shard.file).with_suffix(suffix)
            assert (single / name).read_bytes() == (together / name).read_bytes()


def test_an_error_leaves_no_file(tmp_path):
    def write_half():
        with ShardWriter(tmp_path, "train", "00000", 300, 3) as writer:
            writer.add(np.arange(10), 10)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert list((tmp_path / "train").iterdir()) == []


def test_damage_and_wrong_names_are_refused(tmp_path):
    shards = write(tmp_path, [[5] * 20])
    with pytest.raises(ValueError, match="no split 'test', but heldout, train"):
        TokenShards.open(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="manta tokens"):
        TokenShards.open(tmp_path / "train", "train")
    with pytest.raises(ValueError, match="make them again"):
        TokenShards(tmp_path, "train", {"splits": {"train": [{"tokens": 1}]}})
    with open(tmp_path / shards.files[0], "ab") as stream:
        stream.write(b"x")
    opened = TokenShards.open(tmp_path, "train")
    for use in (opened.check_files, lambda: opened.read(0, 0, 1)):
        with pytest.raises(ValueError, match=r"has 43 bytes, shards\.json says 42"):
            use()
    assert json.loads((tmp_path / SHARDS_FILE).read_bytes())["dtype"] == token_dtype(300).name


@pytest.fixture
def shards(tmp_path):
    return write(tmp_path, [list(range(4, 4 + n)) for n in (40, 7, 93, 60, 21, 33)])


def loader(shards, seed=1, seq_len=8):
    return TokenLoader(shards, Order(shards.shard_tokens, seq_len, seed, block_samples=3, window_blocks=2))


def test_batch_reads_what_the_order_names(shards):
    reader = loader(shards)
    rows = reader.batch(0, reader.order.samples_per_epoch)
    assert rows.dtype == np.int64
    whole = [shards.read(k, 0, n) for k, n in enumerate(shards.shard_tokens)]
    expected = [part[i : i + 8].tolist() for part in whole for i in range(0, len(part) - 7, 8)]
    assert sorted(rows.tolist()) == sorted(expected)
    assert np.array_equal(reader.batch(5, 9), np.concatenate([reader.batch(5, 4), reader.batch(9, 5)]))


def test_a_changed_dataset_is_refused_by_naming_the_difference(shards, tmp_path):
    state = json.loads(json.dumps(loader(shards).state(24)))
    assert state["samples_consumed"] == 24
    loader(shards).check_state(state)
    more = write(tmp_path / "more", [[7] * 500], shard_bytes=2000)
    with pytest.raises(ValueError, match=r"content .*; shards \d+ → 1; tokens 260 → 501; resume with"):
        loader(more).check_state(state)
    with pytest.raises(ValueError, match="this data: seed 1 → 2; resume"):
        loader(shards, seed=2).check_state(state)
    with pytest.raises(ValueError, match="seq_len 8 → 4"):
        loader(shards, seq_len=4).check_state(state)
