"""What can go of the versions under a root; nothing of one whose lease is held."""

from collections.abc import Iterator, Set
from dataclasses import dataclass

from cluster.artifacts.draft import REPLACED, existing
from cluster.artifacts.folder import Folder
from cluster.artifacts.lease import LEASES, is_held, note_of_commit
from cluster.artifacts.ledger import LEDGER
from cluster.artifacts.manifest import MANIFEST, RUN, Artifact, DamagedManifest
from cluster.artifacts.manifest_format import parse_files
from cluster.artifacts.store import KINDS, ArtifactStore
from llm.training.checkpoint_manifest import is_for_ever

_BETWEEN_STEPS = ("work", "sample", "batches", "ray_train", LEDGER)
"""Folders that a stage needs until its artifact is committed."""
_CHECKPOINTS = "checkpoints"
_KEPT_FOLDERS = (_CHECKPOINTS, "wandb", "hangs", "profiles")
_LOGS = ("evaluations.jsonl", "metrics.jsonl", "samples.jsonl", "timing.jsonl")
_KEPT_FILES = (MANIFEST, RUN, "begun.json", *_LOGS)
"""Beside what the manifest lists, these may lie in a finished artifact's folder."""
_IN_THE_MAKING = (".partial", ".lock")
"""Endings of files that somebody may be writing; when they are old they are scratch."""


@dataclass(frozen=True)
class Litter:
    """Files of a folder that can go, and why."""

    folder: Folder
    names: list[str]
    bytes: int
    reason: str


def find_litter(
    store: ArtifactStore, keep_checkpoints: int, drafts: bool, dead: Set[str] = frozenset()
) -> Iterator[Litter]:
    """What can go, version by version. With `drafts`, also unfinished artifacts that nobody works on.

    dead: refs whose leases count as free, whoever holds them.
    """
    for kind in KINDS:
        for name in store.storage.folders(kind):
            siblings = Folder(store.storage, f"{kind}/{name}")
            versions = siblings.folders()
            for version in versions:
                if _is_free(siblings, version, dead):
                    yield from _of_version(siblings, version, keep_checkpoints, drafts)
            yield from _replaced(siblings, drafts, dead)
            yield from _dead_leases(siblings, versions, dead)


def _of_version(siblings: Folder, version: str, keep_checkpoints: int, drafts: bool) -> Iterator[Litter]:
    folder = siblings / version
    sizes = folder.files()
    try:
        artifact = existing(folder)
    except DamagedManifest:
        return  # whoever makes it again goes on from what is there
    if artifact is None:
        if drafts and not _is_decided(siblings, version, sizes):
            yield from _found(folder, sizes, list(sizes), "unfinished")
        return
    between = [name for name in sizes if name.split("/")[0] in _BETWEEN_STEPS or name.endswith(".pending")]
    yield from _found(folder, sizes, between, "work files of a finished artifact")
    strays = [name for name in sizes if name not in between and _is_stray(artifact, name)]
    yield from _found(folder, sizes, strays, "files that the manifest does not list")
    for step in _superfluous_checkpoints(folder, sizes, keep_checkpoints):
        prefix = f"{_CHECKPOINTS}/{step}/"
        names = [name for name in sizes if name.startswith(prefix)]
        yield from _found(folder, sizes, names, "old or damaged checkpoint")


def _replaced(siblings: Folder, drafts: bool, dead: Set[str]) -> Iterator[Litter]:
    """What `--force` set aside: the only whole copy until its version is finished again, so then a draft."""
    local = siblings.local
    if local is None:
        names = {key.split("/")[0] for key in siblings.files()}
    else:  # whose `files` leaves out folders like these
        names = {path.name for path in local.glob(f"{REPLACED}*")}
    for name in sorted(names):
        version = name.removeprefix(REPLACED)
        if version == name or not _is_free(siblings, version, dead):
            continue
        if drafts or _is_finished(siblings / version):
            sizes = (siblings / name).files()
            yield from _found(siblings / name, sizes, list(sizes), "replaced by --force")


def _is_finished(folder: Folder) -> bool:
    try:
        return existing(folder) is not None
    except DamagedManifest:
        return False


def _is_decided(siblings: Folder, version: str, sizes: dict[str, int]) -> bool:
    """Whether it was committed by a process that died before it wrote the manifest: the next run does."""
    note = note_of_commit(siblings, f"{LEASES}/{version}.json")
    return note is not None and note.get("pending") in sizes


def _is_stray(artifact: Artifact, name: str) -> bool:
    """Whether it is the output of a unit that was planned otherwise once, or the like."""
    first = name.split("/")[0]
    return not (
        name in artifact.files
        or name in _KEPT_FILES
        or first in _KEPT_FOLDERS
        or first.startswith(".")
        or name.endswith(_IN_THE_MAKING)
    )


def _superfluous_checkpoints(folder: Folder, sizes: dict[str, int], keep: int) -> list[str]:
    """All but the newest `keep` that are whole and, unless that is 0, those that are to be kept for ever;
    none if there should be one that is whole, and is not.
    """
    start = f"{_CHECKPOINTS}/step-"
    steps = sorted({name.split("/")[1] for name in sizes if name.startswith(start)}, reverse=True)
    whole = [step for step in steps if _is_whole(folder, f"{_CHECKPOINTS}/{step}", sizes)]
    kept = whole[:keep]
    if keep:
        kept += [step for step in whole if is_for_ever(folder.read(f"{_CHECKPOINTS}/{step}/{MANIFEST}"))]
    if keep and not kept:
        return []
    return [step for step in steps if step not in kept]


def _is_whole(folder: Folder, checkpoint: str, sizes: dict[str, int]) -> bool:
    """Whether its manifest can be read and all its files are as long as that says."""
    try:
        files = parse_files(folder.read(f"{checkpoint}/{MANIFEST}"))
    except (FileNotFoundError, ValueError):
        return False
    return all(sizes.get(f"{checkpoint}/{name}") == entry["bytes"] for name, entry in files.items())


def _dead_leases(siblings: Folder, versions: list[str], dead: Set[str]) -> Iterator[Litter]:
    """Leases of versions that are gone. That of a version that is there may be taken at any moment."""
    leases = siblings / LEASES
    sizes = leases.files()
    gone = [
        name
        for name in sizes
        if (version := name.removesuffix(".json")) not in versions and _is_free(siblings, version, dead)
    ]
    yield from _found(leases, sizes, gone, "leases of versions that were removed")


def _is_free(siblings: Folder, version: str, dead: Set[str]) -> bool:
    return f"{siblings.prefix}/{version}" in dead or not is_held(siblings, f"{LEASES}/{version}.json")


def _found(folder: Folder, sizes: dict[str, int], names: list[str], reason: str) -> Iterator[Litter]:
    if names:
        yield Litter(folder, names, sum(sizes[name] for name in names), reason)
