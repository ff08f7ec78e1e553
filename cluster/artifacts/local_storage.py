"""Storage on a disk of this machine, or on one that all nodes mount.

After a crash at any instruction, a name holds either nothing, its old bytes, or its new bytes.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cluster.artifacts.files import compare_and_swap, create, is_disk_full, sync, write_atomic
from cluster.errors import StorageError

_HIDDEN = "."
"""Folders in the making, and those of leases, start with it: what is in them is not listed with the rest."""
_NO_OBJECTS = (".partial", ".lock")
"""Endings of hidden files in the making, and of locks."""


@dataclass(frozen=True)
class LocalStorage:
    """Objects are files under `root`. Implements `cluster.artifacts.storage.Storage`."""

    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def read(self, key: str) -> bytes:
        return self.local(key).read_bytes()

    def read_range(self, key: str, first: int, count: int) -> bytes:
        with open(self.local(key), "rb") as stream:
            stream.seek(first)
            return stream.read(count)

    def write(self, key: str, data: bytes) -> None:
        with _disk_errors(self.local(key)):
            write_atomic(self.local(key), data)

    def create(self, key: str, data: bytes) -> bool:
        with _disk_errors(self.local(key)):
            return create(self.local(key), data)

    def swap(self, key: str, expected: bytes | None, data: bytes) -> bool:
        with _disk_errors(self.local(key)):
            return compare_and_swap(self.local(key), expected, data)

    def upload(self, path: Path, key: str) -> None:
        """Moves the file where it can (same disk), else copies it."""
        target = self.local(key)
        with _disk_errors(target):
            sync(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(path, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
                shutil.copyfile(path, partial)
                sync(partial)
                os.replace(partial, target)
            sync(target.parent)

    def download(self, key: str, path: Path) -> None:
        shutil.copyfile(self.local(key), path)

    def copy(self, key: str, new_key: str) -> None:
        """A second name for the same file, which costs no space, where the disk can do that."""
        source, target = self.local(key), self.local(new_key)
        with _disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
            partial.unlink(missing_ok=True)
            try:
                try:
                    os.link(source, partial)
                except FileNotFoundError:
                    raise
                except OSError:
                    shutil.copyfile(source, partial)
                    sync(partial)
                os.replace(partial, target)
                sync(target.parent)
            finally:  # also where both were names of one file already, and nothing was replaced
                partial.unlink(missing_ok=True)

    def open(self, key: str) -> pa.NativeFile:
        return pa.memory_map(str(self.local(key)))

    def files(self, prefix: str) -> dict[str, int]:
        found = {}
        for folder, folders, files in os.walk(self.local(prefix)):
            folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
            for name in files:
                if not (name.startswith(_HIDDEN) and name.endswith(_NO_OBJECTS)):
                    path = Path(folder, name)
                    found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def folders(self, prefix: str) -> list[str]:
        folder = self.local(prefix)
        if not folder.is_dir():
            return []
        return sorted(each.name for each in folder.iterdir() if each.is_dir() and each.name[0] != _HIDDEN)

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self.local(key).unlink(missing_ok=True)
        for folder in sorted({self.local(key).parent for key in keys}, reverse=True):
            self._remove_empty(folder)

    def rename(self, prefix: str, new_prefix: str) -> None:
        if self.local(prefix).exists():
            self.local(new_prefix).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.local(prefix), self.local(new_prefix))

    def local(self, key: str) -> Path:
        return self.root / key

    def _remove_empty(self, folder: Path) -> None:
        """Folders exist for the sake of their files alone."""
        while folder != self.root and folder.is_dir():
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise StorageError(
                f"{path}: the disk is full; make room and run again: finished work is kept"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"{path}: cannot be written ({error.strerror}); choose another --root"
            ) from None
        raise
