"""A unit of the tokens stage against one document after the other, in one thread, by SentencePiece."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.folder import describe
from cluster.artifacts.store import ArtifactStore
from llm.data.shards import ShardWriter
from llm.tokenizer.sentence_piece import MODEL_FILE, SentencePieceTokenizer
from llm.tokenizer.train import train_tokenizer
from pipelines.corpus.tables import TEXT, RowWriter
from pipelines.tokens import encode_worker
from pipelines.tokens.encode_worker import AT_ONCE, SPLITS, EncodeWorker

FILE, GROUP_ROWS, SHARD_BYTES = "part-00000.parquet", 40, 1000
PAYLOAD = {"file": FILE, "first": 1, "last": 4, "bytes": 0}


def begin(root, kind):
    draft = ArtifactStore(root).begin(kind=kind, name="a", stage="made", logic_version=1, what={}, inputs={})
    assert isinstance(draft, Draft)
    return draft


@pytest.fixture
def documents():
    """(text, split) of each: empty ones, and runs of one split and of the other."""
    random = np.random.default_rng(0)
    splits = np.repeat(random.choice(SPLITS, 100), random.integers(1, 6, 100))
    texts = (" ".join(["größer", "than", "all"] * length) for length in random.integers(0, 9, len(splits)))
    return list(zip(texts, splits.tolist(), strict=True))


@pytest.fixture
def worker(tmp_path, documents, monkeypatch):
    monkeypatch.setattr(encode_worker, "_BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(encode_worker, "ShardWriter", functools.partial(ShardWriter, shard_bytes=SHARD_BYTES))
    corpus, tokenizer = begin(tmp_path, "corpora"), begin(tmp_path, "tokenizers")
    with corpus.writing() as writing, RowWriter(writing.path / FILE, TEXT, GROUP_ROWS) as rows:
        for number, (text, split) in enumerate(documents):
            rows.add({"id": f"{number:032x}", "text": text, "source": "s", "split": split}, size=1)
    tokenizer.write(MODEL_FILE, train_tokenizer([text for text, _ in documents], vocab_size=300))
    target = begin(tmp_path, "tokens").folder
    return EncodeWorker(corpus.commit({"format": "text"}), tokenizer.commit({}), target, text_bytes=0)


def test_shards_are_those_of_one_document_after_the_other(worker, documents, tmp_path):
    """Also where two units are under way in one worker, as many as it is for."""
    others = [PAYLOAD | {"first": 0, "last": 2}, PAYLOAD | {"first": 3, "last": 5}]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(worker.run, f"encode-{i}", other) for i, other in enumerate(others)]
        run = pool.submit(worker.run, "encode-u", PAYLOAD)
        assert all(each.result()["files"] for each in runs)
        record = run.result()
    tokenizer = SentencePieceTokenizer(worker._tokenizer.model)
    first, last = (PAYLOAD[name] * GROUP_ROWS for name in ("first", "last"))
    for split in SPLITS:
        with ShardWriter(tmp_path / "naive", split, "u", 300, tokenizer.eos_id, SHARD_BYTES) as naive:
            for text, of_split in documents[first:last]:
                if of_split == split:
                    naive.add(np.array(tokenizer.encode(text)), len(text.encode()))
        assert record["shards"][split] == [vars(shard) for shard in naive.shards]
        assert len(naive.shards) > 1
    written = worker._target.local
    names = sorted(path.relative_to(written).as_posix() for path in written.rglob("part-u-*"))
    assert names == sorted(record["files"])
    for name, entry in record["files"].items():
        assert entry == describe(written / name) == describe(tmp_path / "naive" / name)


@pytest.mark.parametrize("call", [1, 3])
def test_what_cannot_be_written_fails_the_unit_and_leaves_nothing(worker, monkeypatch, call):
    calls = []

    def full(self, *documents, whole=ShardWriter.add_documents):
        calls.append(1)
        if len(calls) >= call:
            raise OSError(28, "No space left on device")
        whole(self, *documents)

    monkeypatch.setattr(ShardWriter, "add_documents", full)
    with pytest.raises(OSError, match="No space left"):
        worker.run("encode-u", PAYLOAD)
    assert not [path for path in worker._target.local.rglob("*") if path.is_file()]
