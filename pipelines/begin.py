"""How every stage begins: the artifact if it exists, else a draft to fill."""

from typing import Any

from cluster.artifacts.continued import forget_damaged_units
from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact, verify
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from pipelines.progress import console
from pipelines.stage_config import StageConfig

_CHECKED_BYTES = 16 * 2**30
"""Inputs up to this size are read and compared with their manifests first: ten seconds or so.

What earlier runs left in a draft likewise.
"""
_NAMED_UNITS = 3


def begin(
    config: StageConfig,
    inputs: dict[str, Artifact],
    *,
    kind: str,
    stage: str,
    logic_version: int,
    what: dict[str, Any] | None = None,
) -> Artifact | Draft:
    """`ArtifactStore.begin` with all that a stage's configuration says; the inputs of a draft are whole.

    what: the identity of the result, where it is more than `config.what()`.

    Raises:
        UserError: an input is damaged, or what `ArtifactStore.begin` raises.
    """
    started = ArtifactStore(config.root).begin(
        kind=kind,
        name=config.name,
        stage=stage,
        logic_version=logic_version,
        what=config.what() if what is None else what,
        inputs=inputs,
        how=config.how(),
        force=config.force,
        announce=console.print,
    )
    if isinstance(started, Draft):
        check_inputs(inputs)
        if started.resumed:
            redo_damaged_units(started)
    return started


def redo_damaged_units(draft: Draft) -> None:
    """Let units whose files are missing or changed since an earlier run be done again, and say so."""
    damaged = forget_damaged_units(draft.folder, draft.ledger, _CHECKED_BYTES)
    for unit, problem in list(damaged.items())[:_NAMED_UNITS]:
        console.print(f"{draft.ref}: {unit} is done again: {problem}", markup=False)
    if len(damaged) > _NAMED_UNITS:
        console.print(f"{draft.ref}: and so are {len(damaged) - _NAMED_UNITS} more")


def check_inputs(inputs: dict[str, Artifact]) -> None:
    """Raise UserError if a file of an input is not as its manifest says.

    On a disk only: what comes out of object storage is checked on its way in. Large inputs are left to
    `manta verify`.
    """
    for artifact in inputs.values():
        if artifact.folder.local is None or artifact.bytes > _CHECKED_BYTES:
            continue
        for problem in verify(artifact, checkpoints=False):
            raise UserError(
                f"{problem}; it is an input: make {artifact.ref} again with --force, or restore the file"
            )
