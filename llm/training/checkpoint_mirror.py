"""A second place for checkpoints, for machines whose disks do not outlive them."""

from pathlib import Path
from typing import Protocol


class CheckpointMirror(Protocol):
    """Holds checkpoints by name, `step-NNNNNNNN`. With a mirror, what it holds is the truth, and folders of
    the machines are copies.
    """

    def names(self) -> list[str]:
        """Whole checkpoints, newest first."""
        ...

    def manifest(self, name: str) -> bytes:
        """The manifest of one of them."""
        ...

    def download(self, name: str, files: list[str], folder: Path) -> None:
        """Copy files of a checkpoint, by the names that its manifest has, into `folder`."""
        ...

    def upload(self, name: str, files: list[str], folder: Path) -> None:
        """Take files of a checkpoint from `folder`. Every rank brings its own."""
        ...

    def seal(self, name: str, manifest: bytes) -> None:
        """All files are there: make the checkpoint whole. By rank 0, after all have brought theirs."""
        ...

    def remove(self, name: str) -> None:
        """Drop a checkpoint, its manifest first."""
        ...
