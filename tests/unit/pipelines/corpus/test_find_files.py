"""The same files are found in a bucket as on a disk."""

import uuid

import pytest

from cluster.errors import UserError
from pipelines.corpus.config import CorpusConfig
from pipelines.corpus.inputs import find_files

NAMES = (
    *("a.txt", "b.jsonl.gz", "notes.md", "one/a.txt", "one/b.txt", "one/two/c.parquet"),
    *("one/two/three/d.jsonl", "onetwo/e.txt", ".hidden/f.txt", "one/.g.txt", "picture.png"),
)
PATTERNS = (
    *("", "one", "one/a.txt", "*.txt", "one/*", "one/**", "**/*.txt", "one/**/*.jsonl", "**/t*/**/d.*"),
    *("o*/?.txt", "one/[!a].txt", "one/.*.txt", "[z-ao]ne/a.txt"),
)


@pytest.fixture(scope="module")
def both(object_storage, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A folder and a bucket that hold the same, nothing else."""
    folder, bucket = tmp_path_factory.mktemp("raw"), f"raw-{uuid.uuid4().hex[:12]}"
    object_storage.client.create_bucket(Bucket=bucket)
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        object_storage.client.put_object(Bucket=bucket, Key=name, Body=b"x")
    return str(folder), f"s3://{bucket}"


@pytest.fixture(autouse=True)
def credentials(object_storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)


def found(*paths: str) -> list[tuple[str, str, int]]:
    files = find_files(CorpusConfig(root="runs", paths=paths))
    return [(file.source, file.format, file.bytes) for file in files]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_bucket_is_read_like_a_disk(pattern: str, both: tuple[str, str]) -> None:
    folder, bucket = both
    on_disk = found(f"{folder}/{pattern}".rstrip("/"))
    assert on_disk
    assert found(f"{bucket}/{pattern}".rstrip("/")) == on_disk


def test_what_is_not_there_is_named(both: tuple[str, str]) -> None:
    for root in both:
        for missing in ("none", "*.csv", "one/none.txt"):
            with pytest.raises(
                UserError, match=rf"--paths {root}/{missing.replace('*', '.')}: (there is )?no such"
            ):
                found(f"{root}/{missing}")
    with pytest.raises(UserError, match="no bucket"):
        found("s3://")
