"""A corpus is the same however its hashes are cut into ranges, and a bucket is listed a few times a run."""

import json
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.artifacts import s3_connection
from cluster.artifacts.s3_storage import S3Storage
from cluster.artifacts.store import ArtifactStore
from pipelines.corpus import inputs, stage
from pipelines.corpus.config import CorpusConfig
from tests.object_storage import BUCKET
from tests.unit.pipelines.corpus.without_ray import make_corpus


def texts() -> list[str]:
    """400 documents of which 150 are different: most of them come again, in other files."""
    drawn = random.Random(0)
    different = [f"document {number} " * (1 + number % 7) for number in range(150)]
    return different + [drawn.choice(different) for _ in range(250)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder, documents = tmp_path / "raw", texts()
    folder.mkdir()
    for number in range(8):
        lines = (json.dumps({"text": text}) for text in documents[number::8])
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    return folder


def test_several_hash_ranges_find_the_duplicates_that_one_finds(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "unit_bytes", lambda total: 1_500)
    corpora, ranges = [], []
    for range_bytes in (stage.RANGE_BYTES, 4_000, 300):
        monkeypatch.setattr(stage, "RANGE_BYTES", range_bytes)
        config = CorpusConfig(root=str(tmp_path / str(range_bytes)), paths=(str(raw),))
        corpora.append(make_corpus(config, monkeypatch))
        ledger = ArtifactStore(config.root).storage.files(f"{corpora[-1].ref}/ledger")
        ranges.append(sum("/dedup-" in name for name in ledger))
    one, few, many = corpora
    assert ranges[0] == 1 < ranges[1] < ranges[2], "the ranges are what differs"
    assert (one.counts["documents"], one.counts["removed"]) == (150, {"duplicate": 250})
    assert few.manifest == one.manifest, "the files' SHA-256 are in it"
    assert many.manifest == one.manifest


@pytest.fixture
def bucket(object_storage, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def listings(bucket: str) -> Iterator[list[str]]:
    """The prefix of each listing that is asked for from now on."""
    storage = S3Storage.from_environment(BUCKET, "")
    events = s3_connection.client(storage.endpoint, storage.region).meta.events
    asked: list[str] = []

    def note(params: dict, **_: object) -> None:
        asked.append(params["Prefix"])

    events.register("provide-client-params.s3.ListObjectsV2", note)
    yield asked
    events.unregister("provide-client-params.s3.ListObjectsV2", note)


def of(prefix: str, listings: list[str]) -> int:
    return sum(f"s3://{BUCKET}/{each}".startswith(prefix) for each in listings)


@pytest.mark.parametrize("pattern", ["raw", "raw/*.jsonl"])
def test_raw_inputs_in_a_bucket_are_listed_once_a_step(
    pattern: str, bucket: str, raw: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once by the check before Ray starts, once by the run; never per file, unit or range."""
    storage = S3Storage.from_environment(BUCKET, bucket.rpartition("/")[2])
    for file in raw.iterdir():
        storage.upload(file, f"raw/{file.name}")
    config = CorpusConfig(root=f"{bucket}/root", paths=(f"{bucket}/{pattern}",))

    stage.resolve_inputs(config, ArtifactStore(config.root))
    assert (of(f"{bucket}/raw", listings), len(listings)) == (1, 1)

    monkeypatch.setattr(inputs, "unit_bytes", lambda total: 1_500)
    made = make_corpus(config, monkeypatch)
    assert of(f"{bucket}/raw", listings) == 2

    listings.clear()
    stage.resolve_inputs(config, ArtifactStore(config.root))
    assert make_corpus(config, monkeypatch).ref == made.ref
    assert of(f"{bucket}/raw", listings) == 2
    assert len(listings) == 2, "a finished stage is found by its version, not by looking"
