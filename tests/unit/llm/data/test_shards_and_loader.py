"""Shards read back what was written; a batch is what the order names; another stream is refused."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data import shard_files
from llm.data.loader import TokenLoader
from llm.data.mixed_order import MixedOrder
from llm.data.mixture import Mixture
from llm.data.order import Order
from llm.data.shard_files import RangedFiles
from llm.data.shards import (
    SHARDS_FILE,
    ShardWriter,
    TokenShards,
    columns_of,
    document_ends,
    shards_json,
    token_dtype,
)


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
    root = tmp_path_factory.mktemp("tokens")
    shards = write(root, documents, vocab_size)
    read = []
    for k, tokens in enumerate(shards.shard_tokens):
        stream, ends = shards.read(k, 0, tokens), document_ends(root, shards.names[k]).tolist()
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
        columns_of({"splits": {"train": [{"tokens": 1}]}}, "train")
    with open(tmp_path / shards.names[0], "ab") as stream:
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


class Objects:
    """Stands for object storage: ranges of the files below a folder."""

    def __init__(self, root):
        self.root, self.asked, self.came = root, [], threading.Event()
        self.wanted = 0

    def read_range(self, file, first, count):
        with open(self.root / file, "rb") as stream:
            stream.seek(first)
            content = stream.read(count)
        self.asked.append((file, first, count))
        if len(self.asked) == self.wanted:
            self.came.set()
        return content

    def wait_for(self, requests):
        self.wanted = requests
        if len(self.asked) < requests:
            assert self.came.wait(30)
        self.came.clear()


@pytest.fixture
def requests():
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_over_a_network_each_sample_is_asked_for_once_and_ahead(shards, tmp_path, requests):
    objects = Objects(tmp_path)
    content = json.loads((tmp_path / SHARDS_FILE).read_bytes())
    files = RangedFiles(objects.read_range, token_dtype(content["vocab_size"]), requests)
    here, there = loader(shards), loader(TokenShards(content, "train", files))
    assert np.array_equal(there.batch(0, 4), here.batch(0, 4))
    for _ in range(2):
        there.expect(4, 6)
    objects.wait_for(10)
    assert np.array_equal(there.batch(4, 6), here.batch(4, 6))
    assert len(objects.asked) == len(set(objects.asked)) == 10, "none is asked for again"
    assert {count for _, _, count in objects.asked} == {8 * 2}, "no more than the samples themselves"


def test_what_nobody_comes_for_is_forgotten(monkeypatch, requests):
    monkeypatch.setattr(shard_files, "_MOST_EXPECTED", 5)
    asked = []

    def read_range(file, first, count):
        asked.append(first)
        return bytes(count)

    files = RangedFiles(read_range, np.dtype("<u2"), requests)
    for first in range(20):
        files.expect([("a", first, 1)])
    for first in range(20):
        assert files.read(("a", first, 1), 20).tolist() == [0]
    assert len(asked) <= 20 + 15, "the five that were expected last are not asked for again"


def test_an_error_of_the_network_comes_where_the_sample_is_read(requests):
    def refuses(*_):
        raise OSError("gone")

    files = RangedFiles(refuses, np.dtype("<u2"), requests)
    files.expect([("a", 0, 8)])
    with pytest.raises(OSError, match="gone"):
        files.read(("a", 0, 8), 8)


@pytest.fixture
def sources(tmp_path):
    """Three sources of different sizes, whose tokens tell which they are of."""
    return [
        write(tmp_path / name, [[4 + number] * length] * 9)
        for number, (name, length) in enumerate((("web", 50), ("code", 23), ("math", 90)))
    ]


def mixed(sources, stages=((0, (5, 3, 0)), (40, (2, 1, 4)))):
    orders = [Order(each.shard_tokens, 8, 1, 3, 2, source=each.fingerprint) for each in sources]
    order = MixedOrder(orders, [len(each) for each in sources], Mixture(stages))
    return TokenLoader(TokenShards.join(sources), order)


def test_a_mixed_stream_goes_through_every_source_in_its_own_order(sources):
    reader = mixed(sources)
    rows = reader.batch(0, 300)
    which, _ = reader.order.mixture.locate(np.arange(300))
    for number, source in enumerate(sources):
        order = Order(source.shard_tokens, 8, 1, 3, 2, source=source.fingerprint)
        alone = TokenLoader(source, order).batch(0, int((which == number).sum()))
        assert np.array_equal(rows[which == number], alone)
        epochs = reader.order.epochs(300)[number]
        assert epochs == pytest.approx((which == number).sum() / order.samples_per_epoch)
    assert np.bincount(which[:40], minlength=3).tolist() == [25, 15, 0]
    assert np.bincount(which[40:110], minlength=3).tolist() == [20, 10, 40]
    assert np.array_equal(reader.batch(37, 50), rows[37:87])


def test_another_mixture_is_another_stream(sources):
    state = json.loads(json.dumps(mixed(sources).state(24)))
    mixed(sources).check_state(state)
    with pytest.raises(ValueError, match="mixture 0: 5 3 0; 40: 2 1 4 → 0: 5 3 1; resume"):
        mixed(sources, stages=((0, (5, 3, 1)),)).check_state(state)
    with pytest.raises(ValueError, match="content"):
        mixed([sources[1], sources[0], sources[2]]).check_state(state)


def test_tokens_of_two_tokenizers_are_not_joined(sources, tmp_path):
    (tmp_path / "web" / SHARDS_FILE).write_bytes(shards_json(300, "e" * 64, 3, {"train": []}))
    with pytest.raises(ValueError, match="different tokenizers"):
        TokenShards.join([TokenShards.open(tmp_path / "web", "train"), sources[1]])
