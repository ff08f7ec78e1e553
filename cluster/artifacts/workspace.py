"""Where a long run writes on its own machine, and how that reaches the folder of its artifact.

Where the root is a folder, both are one. In object storage, files are written on this machine and published
when they are worth keeping; a run that goes on elsewhere restores them.
"""

from dataclasses import dataclass
from pathlib import Path

from cluster.artifacts.cache import place_for
from cluster.artifacts.folder import FileEntry, Folder

WORKSPACES = "workspaces"
"""Folder of the cache."""


def place_of(folder: Folder) -> Path:
    """The workspace on this machine of an artifact in object storage."""
    return place_for(folder, WORKSPACES)


@dataclass(frozen=True)
class Workspace:
    """Cheap to pickle: on each machine, `path` is a place of that machine."""

    folder: Folder

    @property
    def path(self) -> Path:
        """The folder to write to; it exists."""
        path = self.folder.local or place_of(self.folder)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, names: list[str]) -> dict[str, FileEntry]:
        """Make the named files the artifact's; returns what a manifest says of them."""
        return self.folder.publish(self.path, names)

    def restore(self, names: list[str]) -> None:
        """Bring back those of the named files that were published, over what is here."""
        if self.folder.local is not None:
            return
        published = self.folder.files()
        for name in names:
            if name in published:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                self.folder.storage.download(self.folder.key(name), self.path / name)
