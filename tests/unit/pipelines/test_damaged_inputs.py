"""A flipped bit in an input in object storage ends in one error that names the file."""

import io
import json
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.remote_file import ArtifactFile
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.text.readers import read_parquet
from pipelines.corpus_pieces import corpus_pieces
from pipelines.tokenizer.choice import ALL, Choice
from pipelines.tokenizer.sample_worker import SampleWorker
from pipelines.tokens import encode_worker
from pipelines.tokens.encode_worker import EncodeWorker
from pipelines.unit_actor import UnitActor
from tests.object_storage import BUCKET

PART = "part-00000.parquet"


@pytest.fixture
def corpus(object_storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)
    draft = begin(ArtifactStore(f"s3://{BUCKET}/{uuid.uuid4().hex}"), "corpora")
    rows = [{"id": f"{n:032x}", "text": f"text {n}", "source": "s", "split": "train"} for n in range(100)]
    with draft.writing() as writing:
        pq.write_table(pa.Table.from_pylist(rows), writing.path / PART, compression=None)
    draft.write("small.json", b"{}")
    return draft.commit({"format": "text", "documents": 100})


def begin(store: ArtifactStore, kind: str) -> Draft:
    draft = store.begin(kind=kind, name="a", stage="made", logic_version=1, what={}, inputs={})
    assert isinstance(draft, Draft)
    return draft


def flip_a_bit(artifact: Artifact, name: str) -> None:
    """In the first text: the file is still valid Parquet."""
    content = bytearray(artifact.folder.read(name))
    content[content.find(b"text 0") + 5 if name == PART else 0] ^= 1
    artifact.folder.write(name, bytes(content))


def work(worker: str, corpus: Artifact, target: Path, monkeypatch) -> str:
    """The status of a unit over the corpus's only part: its error."""
    draft = begin(ArtifactStore(target), "tokens")
    (piece,) = corpus_pieces(corpus)

    def encode(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(texts), 5, dtype=np.uint16), np.arange(1, len(texts) + 1)

    fake = SimpleNamespace(vocab_size=300, eos_id=1)
    monkeypatch.setattr(encode_worker, "load_tokenizer", lambda path: fake)
    monkeypatch.setattr(encode_worker, "document_encoder", lambda *_, **__: SimpleNamespace(encode=encode))
    tokenizer = SimpleNamespace(fetch=lambda name: None)
    made = {
        "sample": lambda: SampleWorker(
            corpus, draft.folder / "sample", {"sample": Choice("train", "", 0, {ALL: 1.0})}
        ),
        "encode": lambda: EncodeWorker(corpus, tokenizer, draft.folder, text_bytes=0),
    }[worker]
    actor = UnitActor.__new__(UnitActor)
    actor._worker, actor._ledger = made(), draft.ledger
    actor._run_id, actor._ticket = draft.run_id, draft.ticket

    status = actor._run("encode-00000", json.dumps(vars(piece)), 0)
    assert not status.error or draft.ledger.done() == {}
    return status.error


@pytest.mark.parametrize("worker", ["sample", "encode"])
def test_a_worker_that_reads_a_changed_part_says_which(worker, corpus, tmp_path, monkeypatch) -> None:
    assert work(worker, corpus, tmp_path / "whole", monkeypatch) == ""
    flip_a_bit(corpus, PART)
    error = work(worker, corpus, tmp_path / "changed", monkeypatch)
    assert error.startswith(
        f"{corpus.folder}/{PART}: its bytes are not those of the manifest; `manta verify`"
    )


def test_every_way_to_read_a_file_compares_it(corpus: Artifact) -> None:
    assert len(list(read_parquet(ArtifactFile(corpus, PART)))) == 100
    assert corpus.read("small.json") == b"{}"
    for name in (PART, "small.json"):
        flip_a_bit(corpus, name)
    for read in (
        lambda: corpus.open(PART),
        lambda: list(read_parquet(ArtifactFile(corpus, PART))),
        lambda: corpus.read("small.json"),
    ):
        with pytest.raises(UserError, match="its bytes are not those of the manifest"):
            read()
    corpus.folder.write(PART, b"PAR1")
    with pytest.raises(UserError, match=rf"{PART}: it has 4 bytes, the manifest says"):
        corpus_pieces(corpus)
    corpus.folder.delete([PART, "small.json"])
    for read in (lambda: corpus.peek(PART), lambda: corpus.open(PART), lambda: corpus.read("small.json")):
        with pytest.raises(UserError, match="it is missing"):
            read()


def test_a_footer_that_hides_rows_is_noticed(tmp_path: Path) -> None:
    draft = begin(ArtifactStore(tmp_path), "corpora")
    with draft.writing() as writing:
        pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), writing.path / PART)
    corpus = draft.commit({"format": "text", "documents": 2})
    with pytest.raises(UserError, match="its files have 1 documents, its manifest says 2"):
        corpus_pieces(corpus)


def test_a_part_that_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    draft = begin(ArtifactStore(tmp_path), "corpora")
    draft.write(PART, b"not at all")
    with pytest.raises(UserError, match=rf"{PART}: not a Parquet file"):
        corpus_pieces(draft.commit({"format": "text", "documents": 2}))


def test_a_footer_of_any_length_is_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    rows = pa.table({"id": [str(at) for at in range(3000)], "text": ["b"] * 3000})
    draft = begin(ArtifactStore(tmp_path), "corpora")
    with draft.writing() as writing:
        pq.write_table(rows, writing.path / PART, row_group_size=1)
    corpus = draft.commit({"format": "text", "documents": 3000})
    assert sum(piece.last - piece.first for piece in corpus_pieces(corpus)) == 3000
    content = corpus.folder.read(PART)
    for start in (-100, -int.from_bytes(content[-8:-4], "little") - 8):  # pyarrow has an error for each
        corpus.folder.write(PART, content[:start] + b"\xff" * 60 + content[start + 60 :])
        with pytest.raises(UserError, match=rf"{PART}: not a Parquet file"):
            corpus_pieces(corpus)


def test_storage_that_cannot_be_read_is_no_damage(corpus: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        def read(self, length: int | None = -1) -> bytes:
            raise OSError("AWS Error ACCESS_DENIED")

    monkeypatch.setattr(Artifact, "peek", lambda self, name: pa.PythonFile(Broken(b"x" * 100), mode="r"))
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        corpus_pieces(corpus)
