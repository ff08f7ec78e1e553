"""One interface, two places: everything here holds on a disk and on a real S3 server."""

import copy
import os
import pickle
import random
import threading
import uuid
from pathlib import Path

import pytest

from cluster.artifacts import s3_connection, s3_storage
from cluster.artifacts.folder import Folder
from cluster.artifacts.storage import Storage, open_storage
from cluster.errors import UserError
from tests.object_storage import BUCKET, SECRET_KEY


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "disk":
        return open_storage(tmp_path / "root")
    server = request.getfixturevalue("object_storage")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return open_storage(f"s3://{BUCKET}/{uuid.uuid4().hex}")


def test_objects_come_back(storage: Storage, tmp_path: Path) -> None:
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"two")
    assert storage.read("a/b.bin") == b"two"
    with pytest.raises(FileNotFoundError):
        storage.read("a/none")
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1000)
    storage.upload(tmp_path / "file", "a/c/large")
    storage.download("a/c/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == bytes(range(256)) * 1000
    with storage.open("a/c/large") as file:
        assert file.size() == 256_000
        file.seek(255_990)
        assert file.read() == bytes(range(246, 256))
    assert storage.read_range("a/c/large", 255, 3) == bytes([255, 0, 1])
    assert storage.read_range("a/c/large", 255_998, 5) == bytes([254, 255]), "it ends there"
    assert storage.read_range("a/c/large", 256_000, 5) == b""
    assert storage.read_range("a/c/large", 7, 0) == b""
    with pytest.raises(FileNotFoundError):
        storage.read_range("a/none", 0, 1)
    assert storage.files("a") == {"a/b.bin": 3, "a/c/large": 256_000}
    assert storage.files("a/c") == {"a/c/large": 256_000}
    assert storage.files("nothing") == {}
    for _ in range(2):
        storage.copy("a/c/large", "b/d/second")
    assert storage.read("b/d/second") == storage.read("a/c/large")
    assert storage.files("b") == {"b/d/second": 256_000}
    if (folder := storage.local("b/d")) is not None:
        assert os.listdir(folder) == ["second"]
    with pytest.raises(FileNotFoundError):
        storage.copy("a/none", "b/none")
    assert storage.folders("a") == ["c"]
    storage.rename("a", "z")
    assert storage.files("a") == {}
    storage.delete(["z/b.bin", "z/gone-already"])
    assert list(storage.files("z")) == ["z/c/large"]


def test_a_listing_longer_than_a_page_is_complete(storage: Storage) -> None:
    folder = Folder(storage, "many")
    names = [f"{number:05d}" for number in range(1_003)]
    threads = [
        threading.Thread(target=lambda part=part: [folder.write(n, b"x") for n in names[part::8]])
        for part in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(folder.files()) == names
    folder.delete()
    assert not folder.exists()


def test_of_thirty_two_concurrent_creates_one_wins(storage: Storage) -> None:
    winners: list[int] = []
    barrier = threading.Barrier(32)

    def race(number: int) -> None:
        barrier.wait()
        if storage.create("manifest.json", str(number).encode()):
            winners.append(number)

    _run_all([threading.Thread(target=race, args=(number,)) for number in range(32)])
    assert len(winners) == 1
    assert storage.read("manifest.json") == str(winners[0]).encode()


def test_concurrent_swaps_lose_no_update(storage: Storage) -> None:
    def add_five() -> None:
        done = 0
        while done < 5:
            try:
                current: bytes | None = storage.read("counter")
            except FileNotFoundError:
                current = None
            # Contents that are swapped carry an identity, as leases do.
            count = int((current or b"0").split()[0]) + 1
            done += storage.swap("counter", current, f"{count} {uuid.uuid4().hex}".encode())

    _run_all([threading.Thread(target=add_five) for _ in range(8)])
    assert storage.read("counter").split()[0] == b"40"


def test_swap_wants_what_is_expected(storage: Storage) -> None:
    assert not storage.swap("key", b"old", b"new")
    assert storage.swap("key", None, b"old")
    assert not storage.swap("key", None, b"new")
    assert not storage.swap("key", b"other", b"new")
    assert storage.swap("key", b"old", b"new")
    assert storage.read("key") == b"new"


def test_files_in_the_making_appear_whole_or_not_at_all(storage: Storage) -> None:
    folder = Folder(storage, "corpora/a/1")
    with folder.writing() as writing:
        (writing.path / "sub").mkdir()
        (writing.path / "sub" / "one").write_bytes(b"abc")
        assert folder.files() == {}
    assert folder.files() == {"sub/one": 3}
    # SHA-256 of "abc": FIPS 180-2, appendix B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert writing.files == {"sub/one": {"bytes": 3, "sha256": digest}}

    def fail() -> None:
        with folder.writing() as writing:
            (writing.path / "two").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert folder.files() == {"sub/one": 3}
    with folder.reading("sub/one") as path:
        assert path.read_bytes() == b"abc"


def test_a_storage_that_travelled_works_and_carries_no_secret(storage: Storage) -> None:
    storage.write("x", b"1")
    packed = pickle.dumps(Folder(storage, "sub"))
    assert SECRET_KEY.encode() not in packed
    assert pickle.loads(packed).storage.read("x") == b"1"


def test_wrong_credentials_and_missing_buckets_are_one_line(object_storage, monkeypatch) -> None:
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)
    missing = open_storage("s3://no-such-bucket/x")
    for action in (
        lambda: missing.files("a"),
        lambda: missing.write("a", b""),
        lambda: missing.create("a", b""),
    ):
        with pytest.raises(UserError, match="no bucket 'no-such-bucket' at http://127"):
            action()
    from cluster.artifacts import s3_connection

    s3_connection._session_client.cache_clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    try:
        with pytest.raises(UserError, match=r"refuses the credentials \(SignatureDoesNotMatch\)"):
            open_storage(f"s3://{BUCKET}/x").files("a")
        s3_connection._session_client.cache_clear()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(UserError, match="no credentials"):
            open_storage(f"s3://{BUCKET}/x").files("a")
    finally:
        s3_connection._session_client.cache_clear()


@pytest.mark.parametrize("root", ["gs://bucket/x", "s3://", "s3:///x"])
def test_roots_that_cannot_be(root: str) -> None:
    with pytest.raises(UserError, match=root):
        open_storage(root)


def _run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("size, parts", [(5 * 2**20, 0), (16 * 2**20 + 7, 4)])
def test_a_large_file_is_sent_in_parts_and_comes_back(
    size: int, parts: int, object_storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)
    storage = s3_storage.S3Storage.from_environment(BUCKET, uuid.uuid4().hex)
    transfer = copy.copy(s3_storage._TRANSFER)
    transfer.multipart_threshold, transfer.multipart_chunksize = 8 * 2**20, 5 * 2**20
    monkeypatch.setattr(s3_storage, "_TRANSFER", transfer)
    sent: list[int] = []
    events = s3_connection.client(storage.endpoint, storage.region).meta.events
    events.register("provide-client-params.s3.UploadPart", lambda params, **_: sent.append(1), "parts")
    try:
        content = random.Random(size).randbytes(size)
        (tmp_path / "file").write_bytes(content)
        storage.upload(tmp_path / "file", "large")
    finally:
        events.unregister("provide-client-params.s3.UploadPart", unique_id="parts")
    assert len(sent) == parts
    assert storage.files("") == {"large": size}
    storage.download("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content == storage.read("large")
    with storage.open("large") as file:
        file.seek(size - 9)
        assert file.read() == content[-9:]
