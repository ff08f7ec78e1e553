"""``manta rm``: remove artifacts that nothing else was made from."""

from functools import partial
from typing import Annotated

import tyro

from cluster.artifacts.draft import REPLACED
from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import MANIFEST, Artifact, DamagedManifest
from cluster.artifacts.store import ArtifactStore, AtWork
from cluster.errors import UserError
from pipelines.inspect.dead import release_the_dead
from pipelines.inspect.format import format_bytes
from pipelines.inspect.show import find
from pipelines.progress import console
from pipelines.stage_config import Frozen


class RmConfig(Frozen):
    """Remove artifacts. Refused for one that others were made from, unless they are named too, and for one
    that somebody makes or reads now.
    """

    artifacts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """KIND/NAME (its newest version) or KIND/NAME/VERSION."""
    root: str = "runs/default"
    """Where the artifacts are."""
    dry_run: bool = False
    """Only say what would be removed."""


def run(config: RmConfig) -> None:
    """Check everything, then remove."""
    store = ArtifactStore(config.root)
    chosen = {found.ref: found for found in (_find(store, each) for each in config.artifacts)}
    if not chosen:
        raise UserError("name the artifacts to remove; `manta ls` lists them")
    check_unused(store, set(chosen))
    check_idle(store, set(chosen), config.dry_run)
    for each in chosen.values():
        size = each.bytes if isinstance(each, Artifact) else sum(each.folder.files().values())
        if not config.dry_run:
            remove(store, each.folder)
        verb = "would remove" if config.dry_run else "removed"
        console.print(f"{verb} {each.ref}, {format_bytes(size)}")


def check_unused(store: ArtifactStore, refs: set[str]) -> None:
    """Raise UserError if others were made from one of the artifacts, or may have been."""
    there = store.survey()
    for user in there.artifacts:
        for source in user.manifest["inputs"].values():
            if source["ref"] in refs and user.ref not in refs:
                raise UserError(f"{user.ref} was made from {source['ref']}: remove it first, or name both")
    for damaged in there.damaged:
        if damaged.ref in refs:
            continue
        inputs = store.inputs_of(damaged)
        if inputs is None:
            raise UserError(f"cannot tell what {damaged.ref}, damaged, was made from: remove it first")
        for ref in refs & set(inputs):
            raise UserError(f"{damaged.ref}, damaged, was made from {ref}: mend or remove it first")


def check_idle(store: ArtifactStore, refs: set[str], dry_run: bool) -> None:
    """Raise UserError if somebody makes one of the artifacts, or makes another from it.

    Whoever seems to on another machine is watched first, and released if dead, but for a `dry_run`. What has
    only loaded an artifact, a service or a chat, is not known here.
    """
    dead = release_the_dead(store, _concerned(store, refs), partial(console.print, markup=False), dry_run)
    mend = "wait for it or stop it"
    for each in _concerned(store, refs):
        if each.ref in dead:
            continue
        if each.ref in refs:
            raise UserError(f"{each.ref} is being made by {each.holder}; {mend}")
        for source in refs & set(each.inputs):
            raise UserError(f"{source} is read by {each.holder}, which makes {each.ref}; {mend}")


def _concerned(store: ArtifactStore, refs: set[str]) -> list[AtWork]:
    return [each for each in store.at_work() if each.ref in refs or refs & set(each.inputs)]


def remove(store: ArtifactStore, folder: Folder) -> None:
    """Remove an artifact with all that is in its folder; its name then stands for the newest that is left."""
    # Without its manifest it is no artifact: whatever happens next, nobody will read half of it.
    folder.delete([MANIFEST])
    kind, name, version = folder.prefix.split("/")
    left = [each for each in store.artifacts(kind) if each.name == name]
    newest = max(left, key=lambda each: float(each.run().get("started", 0)), default=None)
    store.point(kind, name, newest.version if newest else None)
    folder.delete()
    Folder(folder.storage, f"{kind}/{name}/{REPLACED}{version}").delete()


def _find(store: ArtifactStore, reference: str) -> Artifact | DamagedManifest:
    try:
        return find(store, reference)
    except DamagedManifest as damaged:
        return damaged
