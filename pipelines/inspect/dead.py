"""Whoever died at work on another machine, and holds leases still."""

from collections.abc import Callable, Iterable

from cluster.artifacts.folder import Folder
from cluster.artifacts.lease import LEASES, TTL_SECONDS, held_elsewhere, release_dead, watch
from cluster.artifacts.store import ArtifactStore, AtWork


def release_the_dead(
    store: ArtifactStore, working: Iterable[AtWork], announce: Callable[[str], None], dry_run: bool
) -> set[str]:
    """End the leases of those of `working` whose machines are gone, so that they cannot commit any more.

    Waits until all are seen to live, or are silent for as long as makes them dead. With `dry_run` changes
    nothing; returns the refs that the dead hold still.
    """
    elsewhere: list[tuple[str, tuple[Folder, str, bytes]]] = []
    for each in working:
        folder, name = _place(store, each.ref)
        content = held_elsewhere(folder, name)
        if content is not None:
            announce(f"{each.ref}: held by {each.holder}")
            elsewhere.append((each.ref, (folder, name, content)))
    if not elsewhere:
        return set()
    announce(f"waiting up to {TTL_SECONDS:.0f} s to see who of another machine is alive")
    now = watch([lease for _, lease in elsewhere])
    dead = {ref: lease for (ref, lease), content in zip(elsewhere, now, strict=True) if lease[2] == content}
    if dry_run:
        return set(dead)
    for lease in dead.values():
        release_dead(*lease)
    return set()


def _place(store: ArtifactStore, ref: str) -> tuple[Folder, str]:
    siblings, _, version = ref.rpartition("/")
    return Folder(store.storage, f"{siblings}/{LEASES}"), f"{version}.json"
