"""Files that are written whole or not at all.

Guarantee: after a crash at any instruction, a name holds either nothing, its old bytes, or its new bytes.
"""

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import StorageError

_CHUNK = 1 << 20
_DISK_FULL = "No space left on device", "] . unexpected pos "
"""The second is all that PyTorch's file writer says when a write comes out short."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, replacing what is there in one step."""
    temporary = _write_temporary(path, data)
    os.replace(temporary, path)
    sync(path.parent)


def create(path: Path, data: bytes) -> bool:
    """Create ``path`` with ``data`` unless the name is taken; True if this call made it.

    Of any number of concurrent calls exactly one returns True, because ``link`` fails on an existing name.
    """
    temporary = _write_temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    sync(path.parent)
    return True


def compare_and_swap(path: Path, expected: bytes | None, data: bytes) -> bool:
    """Replace the content of ``path`` if it is ``expected`` (None: absent); True if it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        current = path.read_bytes() if path.exists() else None
        if current != expected:
            return False
        write_atomic(path, data)
        return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive advisory lock on the file ``path``; the system frees it if this process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Whether that is what an error says, or what caused it."""
    at: BaseException | None = error
    while at is not None:
        is_named = getattr(at, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if is_named or any(words in str(at) for words in _DISK_FULL):
            return True
        at = at.__cause__ or at.__context__
    return False


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """A disk that fills up in the block ends it with one StorageError."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise StorageError(
            f"{path}: the disk is full; make room and run again: checkpoints are kept"
        ) from None


def sync(path: Path) -> None:
    """Make the bytes of a file durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary
