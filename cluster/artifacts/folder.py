"""A folder of a root, wherever the root lies: what drafts are written to and artifacts are read from.

Programs that need a path on this machine get one: the file itself where the root is a folder, else a
temporary copy (`reading`, `writing`), or one that stays (`Artifact.fetch`).
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from cluster.artifacts.storage import Storage

_TRANSFER_THREADS = 8


class FileEntry(TypedDict):
    """What a manifest says of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Folder:
    """All keys below `prefix` of a storage. Cheap to pickle."""

    storage: Storage
    prefix: str

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self.storage, f"{self.prefix}/{name}")

    def __str__(self) -> str:
        return f"{self.storage.uri}/{self.prefix}"

    @property
    def local(self) -> Path | None:
        """This folder on a disk that all nodes see; None in object storage."""
        return self.storage.local(self.prefix)

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError if there is no such file."""
        return self.storage.read(self.key(name))

    def write(self, name: str, data: bytes) -> FileEntry:
        """Write a small file whole, replacing what is there."""
        self.storage.write(self.key(name), data)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless it exists; True if this call did."""
        return self.storage.create(self.key(name), data)

    def exists(self) -> bool:
        """Whether anything lies in it."""
        local = self.local
        return local.exists() if local is not None else bool(self.files())

    def files(self) -> dict[str, int]:
        """Names of all files below, at any depth, in order, with their sizes in bytes."""
        start = len(self.prefix) + 1
        return {key[start:]: size for key, size in self.storage.files(self.prefix).items()}

    def folders(self) -> list[str]:
        """Names of the folders directly in it, in order."""
        return self.storage.folders(self.prefix)

    def read_all(self, names: list[str]) -> list[bytes]:
        """`read` of each, many at a time: object storage answers slowly, but widely."""
        if self.local is not None:
            return [self.read(name) for name in names]
        with ThreadPoolExecutor(4 * _TRANSFER_THREADS) as pool:
            return list(pool.map(self.read, names))

    def delete(self, names: list[str] | None = None) -> None:
        """Remove files; all of them if none are named."""
        local = self.local
        if names is None and local is not None:
            shutil.rmtree(local, ignore_errors=True)
            return
        self.storage.delete([self.key(name) for name in (self.files() if names is None else names)])

    def open(self, name: str) -> pa.NativeFile:
        """A file for random access, without copying all of it. Raises FileNotFoundError."""
        return self.storage.open(self.key(name))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """A path on this machine with the file's bytes, for the length of the block."""
        local = self.storage.local(self.key(name))
        if local is not None:
            yield local
            return
        with tempfile.TemporaryDirectory(prefix="manta-") as scratch:
            path = Path(scratch, Path(name).name)
            self.storage.download(self.key(name), path)
            yield path

    @contextmanager
    def writing(self) -> Iterator["Writing"]:
        """A scratch folder whose files become files of this folder when the block ends well.

        Each appears whole. After an exception nothing appears, and nothing is left behind.
        """
        local = self.local
        if local is not None:
            local.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-" if local else "manta-", dir=local))
        try:
            writing = Writing(scratch, {})
            yield writing
            writing.files.update(self.publish(scratch, described=writing.files))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def publish(
        self, source: Path, names: list[str] | None = None, described: Mapping[str, FileEntry] | None = None
    ) -> dict[str, FileEntry]:
        """Make files of a folder on this machine files of this one; all of them if none are named.

        Returns what a manifest says of them. If `source` is this folder itself, that is all it does; a file
        of another folder on the same disk is moved. `described`: what is known of some of them already.
        """
        known = described or {}
        if names is None:
            paths = [path for path in source.rglob("*") if path.is_file()]
            names = sorted(path.relative_to(source).as_posix() for path in paths)
        entries = {name: known[name] if name in known else describe(source / name) for name in names}
        if self.local is None or self.local != source:
            with ThreadPoolExecutor(_TRANSFER_THREADS) as pool:
                list(pool.map(lambda name: self.storage.upload(source / name, self.key(name)), names))
        return entries


@dataclass(frozen=True)
class Writing:
    """Files in the making."""

    path: Path
    """Write here."""
    files: dict[str, FileEntry]
    """What was published, after the block. Who has hashed a file while writing it puts that in before."""

    def files_below(self, folder: str) -> dict[str, FileEntry]:
        """`files` by their names in a folder that has the written one as `folder`."""
        return {f"{folder}/{name}": entry for name, entry in self.files.items()}


def describe(path: Path) -> FileEntry:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": os.stat(path).st_size, "sha256": digest}
