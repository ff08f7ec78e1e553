"""Copies of artifacts' files on this machine, for roots in object storage.

Artifacts never change, so a copy is good for ever: it is checked against the manifest once, on its way in.
The cache is a folder that may be deleted at any time: `MANTA_CACHE`, else `~/.cache/manta`.
"""

import hashlib
import os
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.artifacts.folder import FileEntry, Folder, describe
from cluster.errors import UserError

_THREADS = 8
_ATTEMPTS = 3


def cache_root() -> Path:
    """The folder of the cache."""
    chosen = os.environ.get("MANTA_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen or f"{base}/manta").expanduser().absolute()


def place_for(folder: Folder, purpose: str, identity: str = "") -> Path:
    """The folder of the cache that belongs to a folder of a root."""
    digest = hashlib.sha256(f"{folder}\0{identity}".encode()).hexdigest()[:20]
    return cache_root() / purpose / f"{folder.prefix.replace('/', '-')}-{digest}"


def fetch(folder: Folder, files: dict[str, FileEntry], names: Iterable[str], identity: str) -> Path:
    """A folder on this machine that has the named files, as the manifest's `files` describe them.

    Raises:
        UserError: a file arrives with other bytes than the manifest says, again and again.
    """
    place = place_for(folder, "artifacts", identity)

    def bring(name: str) -> None:
        target = place / name
        if target.exists() and target.stat().st_size == files[name]["bytes"]:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        try:
            download(folder, name, files[name], partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(bring, names))
    return place


def download(folder: Folder, name: str, entry: FileEntry, target: Path) -> None:
    """Copy a file of an artifact to `target`. Raises UserError like `fetch`."""
    for _ in range(_ATTEMPTS):
        try:
            folder.storage.download(folder.key(name), target)
        except FileNotFoundError:
            raise damaged_file(folder, name, "it is missing") from None
        if describe(target) == entry:
            return
    raise damaged_file(folder, name, "its bytes are not those of the manifest")


def damaged_file(folder: Folder, name: str, problem: str) -> UserError:
    """The error for a file that is not what its artifact's manifest says."""
    return UserError(
        f"{folder}/{name}: {problem}; `manta verify` finds what else is damaged, and the command that made "
        "it, with --force, makes it again"
    )
