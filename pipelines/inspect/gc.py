"""``manta gc``: remove what finished work left behind, and nothing that anybody still needs."""

from functools import partial

from pydantic import Field

from cluster.artifacts.store import ArtifactStore
from cluster.errors import StorageError
from pipelines.inspect.dead import release_the_dead
from pipelines.inspect.format import format_bytes
from pipelines.inspect.litter import find_litter
from pipelines.inspect.scratch import OLD_SECONDS, cached, remove, scratch
from pipelines.progress import console
from pipelines.stage_config import Frozen


class GcConfig(Frozen):
    """Remove what finished artifacts do not need: ledgers, work files and files that no manifest lists; old
    checkpoints, dead leases, uploads that were cut short, and scratch files.
    """

    root: str = "runs/default"
    """Where the artifacts are."""
    keep_checkpoints: int = Field(1, ge=0)
    """Newest whole checkpoints of each finished model to keep; one is enough to extend its training."""
    drafts: bool = False
    """Also remove unfinished artifacts that nobody works on. Their work cannot be continued then."""
    cache: bool = False
    """Also empty this machine's cache of files from object storage, but for what running stages write."""
    dry_run: bool = False
    """Only say what would be removed."""


def run(config: GcConfig) -> None:
    """Print one line a find, and remove it; waits for who may be dead on another machine."""
    store = ArtifactStore(config.root)
    freed = 0
    dead = release_the_dead(store, store.at_work(), partial(console.print, markup=False), config.dry_run)
    for litter in find_litter(store, config.keep_checkpoints, config.drafts, dead):
        if not config.dry_run:
            litter.folder.delete(litter.names)
        freed += litter.bytes
        console.print(f"{litter.reason}: {litter.folder.prefix}, {format_bytes(litter.bytes)}", markup=False)
    paths = [*scratch(store), *(cached(store) if config.cache else ())]
    freed += sum(remove(path, config.dry_run) for path in paths)
    _end_uploads(store, config.dry_run)
    console.print(f"{format_bytes(freed)} {'to free' if config.dry_run else 'freed'}")


def _end_uploads(store: ArtifactStore, dry_run: bool) -> None:
    """Abort uploads to object storage that were cut short a day ago or more."""
    if store.storage.local("") is not None:
        return
    # boto3 takes a while to import, and roots on a disk do without.
    from cluster.artifacts.s3_storage import S3Storage
    from cluster.artifacts.s3_uploads import abort, open_uploads

    assert isinstance(store.storage, S3Storage)
    try:
        for upload in open_uploads(store.storage):
            if upload.age_seconds > OLD_SECONDS:
                if not dry_run:
                    abort(store.storage, upload)
                console.print(f"upload that was cut short: {upload.key}", markup=False)
    except StorageError as error:  # not every policy allows it, and the rest is done
        console.print(f"uploads that were cut short were not looked for: {error}", markup=False)
