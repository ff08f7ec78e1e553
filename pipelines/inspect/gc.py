"""``manta gc``: remove what finished work left behind, and nothing that anybody still needs."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from cluster.artifacts.cache import cache_root
from cluster.artifacts.draft import existing
from cluster.artifacts.folder import Folder
from cluster.artifacts.lease import is_held
from cluster.artifacts.ledger import LEDGER
from cluster.artifacts.manifest import MANIFEST, DamagedManifest
from cluster.artifacts.store import KINDS, ArtifactStore
from pipelines.inspect.format import format_bytes
from pipelines.progress import console
from pipelines.stage_config import Frozen

_BETWEEN_STEPS = ("work", "sample", "batches", "ray_train", LEDGER)
"""Folders that a stage needs until its artifact is committed."""
_SCRATCH = (".writing-*", "*.partial")
_SCRATCH_SECONDS = 24 * 3600.0


class GcConfig(Frozen):
    """Remove ledgers and work files of finished artifacts, old checkpoints, dead leases and scratch files."""

    root: str = "runs/default"
    """Where the artifacts are."""
    keep_checkpoints: int = Field(1, ge=0)
    """Newest checkpoints of each finished model to keep; one is enough to extend its training."""
    drafts: bool = False
    """Also remove unfinished artifacts that nobody works on. Their work cannot be continued then."""
    cache: bool = False
    """Also empty this machine's cache of files from object storage."""
    dry_run: bool = False
    """Only say what would be removed."""


@dataclass(frozen=True)
class Litter:
    """Files of a folder that can go, and why."""

    folder: Folder
    names: list[str]
    bytes: int
    reason: str


def run(config: GcConfig) -> None:
    """Print one line a find, and remove it."""
    store = ArtifactStore(config.root)
    freed = 0
    for litter in find_litter(store, config):
        if not config.dry_run:
            litter.folder.delete(litter.names)
        freed += litter.bytes
        console.print(f"{litter.reason}: {litter.folder.prefix}, {format_bytes(litter.bytes)}", markup=False)
    freed += sum(_remove_scratch(path, config.dry_run) for path in _scratch(store, config))
    console.print(f"{format_bytes(freed)} {'to free' if config.dry_run else 'freed'}")


def find_litter(store: ArtifactStore, config: GcConfig) -> Iterator[Litter]:
    """What can go, version by version; nothing of a version whose lease is held."""
    for kind in KINDS:
        for name in store.storage.folders(kind):
            siblings = Folder(store.storage, f"{kind}/{name}")
            versions = siblings.folders()
            for version in versions:
                if not is_held(siblings, f".leases/{version}.json"):
                    yield from _of_version(siblings, version, config)
            yield from _dead_leases(siblings / ".leases", versions)


def _of_version(siblings: Folder, version: str, config: GcConfig) -> Iterator[Litter]:
    folder = siblings / version
    sizes = folder.files()
    if MANIFEST not in sizes:
        if config.drafts:
            yield _litter(folder, sizes, list(sizes), "unfinished")
        return
    try:
        existing(folder)
    except DamagedManifest:
        return  # whoever makes it again goes on from what is there
    between = [name for name in sizes if name.split("/")[0] in _BETWEEN_STEPS or name.endswith(".pending")]
    yield from _found(folder, sizes, between, "work files of a finished artifact")
    steps = sorted(
        {name.split("/")[1] for name in sizes if name.startswith("checkpoints/step-")}, reverse=True
    )
    for step in steps[config.keep_checkpoints :]:
        prefix = f"checkpoints/{step}/"
        yield from _found(
            folder, sizes, [name for name in sizes if name.startswith(prefix)], "old checkpoint"
        )
    replaced = siblings / f".replaced-{version}"
    yield from _found(replaced, replaced.files(), list(replaced.files()), "replaced by --force")


def _dead_leases(leases: Folder, versions: list[str]) -> Iterator[Litter]:
    """Leases of versions that are gone. That of a version that is there may be taken at any moment."""
    sizes = leases.files()
    gone = [
        name for name in sizes if name.removesuffix(".json") not in versions and not is_held(leases, name)
    ]
    yield from _found(leases, sizes, gone, "leases of versions that were removed")


def _found(folder: Folder, sizes: dict[str, int], names: list[str], reason: str) -> Iterator[Litter]:
    if names:
        yield _litter(folder, sizes, names, reason)


def _litter(folder: Folder, sizes: dict[str, int], names: list[str], reason: str) -> Litter:
    return Litter(folder, names, sum(sizes[name] for name in names), reason)


def _scratch(store: ArtifactStore, config: GcConfig) -> Iterator[Path]:
    """What processes that were killed left on this machine's disk: nothing writes to it any more."""
    root = store.storage.local("")
    if root is not None:
        for pattern in _SCRATCH:
            for path in root.rglob(pattern):
                if path.exists() and time.time() - path.stat().st_mtime > _SCRATCH_SECONDS:
                    yield path
    if config.cache and cache_root().exists():
        yield from cache_root().iterdir()


def _remove_scratch(path: Path, dry_run: bool) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    size = sum(each.stat().st_size for each in files)
    if not dry_run:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return size
