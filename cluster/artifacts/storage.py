"""Where bytes lie: a folder on a disk, or a prefix of a bucket. Two implementations of one small interface.

Keys are relative to the root, with `/` between their parts. Every write is whole or not at all, on both.
Errors that a user can mend (no such bucket, no permission, disk full) are UserError and name the place.
"""

from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import pyarrow as pa

from cluster.errors import UserError


class Storage(Protocol):
    """Objects under one root. Implementations are cheap to pickle: Ray actors open their own connections."""

    @property
    def uri(self) -> str:
        """What the user calls it: an absolute folder, or `s3://bucket/prefix`."""
        ...

    def read(self, key: str) -> bytes:
        """All bytes of an object. Raises FileNotFoundError if there is none."""
        ...

    def read_range(self, key: str, first: int, count: int) -> bytes:
        """`count` bytes of an object from byte `first`; fewer where it ends. Raises FileNotFoundError."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Make `data` the object's content, whatever it was."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Make an object unless the key is taken. Of concurrent calls exactly one returns True."""
        ...

    def swap(self, key: str, expected: bytes | None, data: bytes) -> bool:
        """Replace an object if its content is `expected` (None: there is none). True if it was."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Make the content of a file on this machine the object's. The file may be gone afterwards."""
        ...

    def download(self, key: str, path: Path) -> None:
        """Copy an object into a file on this machine. Raises FileNotFoundError if there is none."""
        ...

    def copy(self, key: str, new_key: str) -> None:
        """Give an immutable object a second key. Raises FileNotFoundError."""
        ...

    def open(self, key: str) -> pa.NativeFile:
        """An object for random access: large files are read in parts. Raises FileNotFoundError."""
        ...

    def files(self, prefix: str) -> dict[str, int]:
        """Keys below the folder `prefix`, at any depth, in order, with their sizes in bytes."""
        ...

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly in the folder `prefix`, in order; not those that start with a dot."""
        ...

    def delete(self, keys: list[str]) -> None:
        """Remove objects; those that are gone already do no harm."""
        ...

    def rename(self, prefix: str, new_prefix: str) -> None:
        """Move all that is below a folder. Not atomic on S3: an interrupted move is begun again."""
        ...

    def local(self, key: str) -> Path | None:
        """Where the object lies, or would lie, on a disk that all nodes see; None in object storage."""
        ...


def open_storage(root: str | Path) -> Storage:
    """The storage of a root: `s3://bucket/prefix`, or a folder, made absolute at once (workers move).

    Raises UserError for another scheme or a URI without a bucket. Touches neither disk nor network.
    """
    parts = urlsplit(str(root))
    if parts.scheme == "s3":
        if not parts.netloc:
            raise UserError(f"{root}: no bucket; write s3://BUCKET/PREFIX")
        from cluster.artifacts.s3_storage import S3Storage

        return S3Storage.from_environment(parts.netloc, parts.path.strip("/"))
    if "://" in str(root):
        raise UserError(f"{root}: {parts.scheme}:// is not supported; give a folder or s3://BUCKET/PREFIX")
    from cluster.artifacts.local_storage import LocalStorage

    return LocalStorage(Path(root).expanduser().absolute())
