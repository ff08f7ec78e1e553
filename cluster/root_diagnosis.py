"""Whether artifacts can be written where the user wants them: on a disk, or in a bucket."""

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cluster.artifacts.cache import cache_root
from cluster.artifacts.storage import open_storage
from cluster.diagnosis import Finding
from cluster.errors import UserError

_QUICKSTART_DISK = 2 * 2**30
_PATIENCE_SECONDS = 5.0
"""Who asks for a diagnosis does not want to wait out an outage."""


def root_of_artifacts(root: str) -> Iterator[Finding]:
    """What a root is good for."""
    if "://" not in root:
        yield from _disk(Path(root), f"the disk of {root}")
        return
    try:
        yield _bucket(root)
    except (UserError, OSError) as error:
        yield Finding("bad", str(error))
        return
    yield from _disk(cache_root(), f"the disk of {cache_root()}, where copies of artifacts are kept")


def _disk(path: Path, name: str) -> Iterator[Finding]:
    folder = path.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    yield Finding(
        "ok" if disk.free >= _QUICKSTART_DISK else "bad",
        f"{disk.free / 2**30:.1f} GiB free on {name} (the quickstart writes less than 1)",
    )
    if not os.access(folder, os.W_OK):
        yield Finding("bad", f"{folder} is not writable: choose another --root, or MANTA_CACHE for a bucket")


def _bucket(root: str) -> Finding:
    """Does what every commit does: list, create, be refused to create again, delete."""
    from cluster.artifacts.s3_storage import S3Storage

    storage = open_storage(root)
    assert isinstance(storage, S3Storage)
    storage = replace(storage, patience_seconds=_PATIENCE_SECONDS)
    storage.folders("")
    probe = f".doctor-{uuid.uuid4().hex}"
    storage.create(probe, b"first")
    try:
        if storage.create(probe, b"second"):
            return Finding(
                "bad",
                f"{storage.uri} takes files, but ignores `If-None-Match` on PUT, on which commits and leases "
                "rest: use a server that knows conditional writes",
            )
    finally:
        storage.delete([probe])
    return Finding("ok", f"{storage.uri} lists, takes and deletes files, and knows conditional writes")
