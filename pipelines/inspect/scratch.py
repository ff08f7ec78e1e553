"""What can go from this machine's disk: what killed processes left there, and copies of remote files."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.artifacts.cache import cache_root
from cluster.artifacts.folder import Folder
from cluster.artifacts.store import ArtifactStore
from cluster.artifacts.workspace import WORKSPACES, place_of

_SCRATCH = (".writing-*", "*.partial")
OLD_SECONDS = 24 * 3600.0
"""What nobody has written to for so long is nobody's."""


def scratch(store: ArtifactStore) -> Iterator[Path]:
    """Files and folders in the making that nothing writes to any more."""
    root = store.storage.local("")
    if root is not None:
        for pattern in _SCRATCH:
            for path in root.rglob(pattern):
                if path.exists() and time.time() - path.stat().st_mtime > OLD_SECONDS:
                    yield path


def cached(store: ArtifactStore) -> Iterator[Path]:
    """All that is in the cache but workspaces that a run of this root, or lately of any root, writes to."""
    if not cache_root().is_dir():
        return
    used = {place_of(Folder(store.storage, each.ref)) for each in store.at_work()}
    for path in cache_root().iterdir():
        if path.name != WORKSPACES:
            yield path
            continue
        for workspace in path.iterdir():
            if workspace not in used and time.time() - _last_change(workspace) > OLD_SECONDS:
                yield workspace


def remove(path: Path, dry_run: bool) -> int:
    """Bytes of the files in it, which are gone then."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    size = sum(each.stat().st_size for each in files)
    if not dry_run:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return size


def _last_change(folder: Path) -> float:
    return max(each.stat().st_mtime for each in [folder, *folder.rglob("*")] if each.exists())
