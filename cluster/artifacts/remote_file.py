"""Files of a storage that open like those on this machine."""

import io
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.storage import Storage

_BUFFER_BYTES = 8 * 2**20
"""Read at a time: object storage answers a large request almost as fast as a small one."""


@dataclass(frozen=True)
class RemoteFile:
    """Opens for reading bytes, seekable. Cheap to pickle."""

    storage: Storage
    key: str

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    def open(self, mode: str = "rb") -> BinaryIO:
        return _buffered(self.storage.open(self.key))

    def __str__(self) -> str:
        return f"{self.storage.uri}/{self.key}"


@dataclass(frozen=True)
class ArtifactFile:
    """Like `RemoteFile`; a file of an artifact, whose bytes are those of the manifest (`Artifact.open`)."""

    artifact: Artifact
    file: str

    @property
    def name(self) -> str:
        return self.file.rpartition("/")[2]

    def open(self, mode: str = "rb") -> BinaryIO:
        return _buffered(self.artifact.open(self.file))

    def __str__(self) -> str:
        return f"{self.artifact.folder}/{self.file}"


def _buffered(file: Any) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_RawFile(file), _BUFFER_BYTES))


class _RawFile(io.RawIOBase):
    """pyarrow's file in the shape that `io` wants."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
