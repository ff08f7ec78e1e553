"""Where a document is read from: a path of this machine, or anything else that opens for reading bytes."""

from pathlib import PurePosixPath
from typing import BinaryIO, Literal, Protocol


class Source(Protocol):
    """`pathlib.Path` is one. `str()` of it is what error messages call it."""

    @property
    def name(self) -> str:
        """The last part of its path: suffixes say what it holds."""
        ...

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """A seekable stream of its bytes."""
        ...


def suffixes(source: Source) -> list[str]:
    """Suffixes of the name, in lower case: [".jsonl", ".zst"]."""
    return [suffix.lower() for suffix in PurePosixPath(source.name).suffixes]
