"""Writing a checkpoint: below a temporary name, synced, uploaded, and made valid in one step at the end.

A folder `step-N` whose manifest agrees with its bytes is whole. Whatever ends a process, and whenever, leaves
the checkpoint of step N whole or absent, and those before it as they were.
"""

import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException

from llm.training.checkpoint_manifest import (
    MANIFEST,
    STATE,
    TENSORS,
    as_json,
    checkpoint_name,
    checkpoints_in,
    describe,
    manifest_json,
    step_of,
)
from llm.training.checkpoint_mirror import CheckpointMirror
from llm.training.checkpoint_ranks import RankGroup
from llm.training.checkpoint_tensors import named_tensors
from llm.training.parallel.weights import in_model_rows
from llm.training.recorder import Superseded


@dataclass(frozen=True)
class CheckpointPlace:
    """Where a run's checkpoints go, which of them stay, and whether the run may still write."""

    folder: Path
    """The same for all ranks; with a mirror, one of each rank's own machine."""
    keep: int
    """Newest checkpoints to keep."""
    keep_every: int = 0
    """Checkpoints of steps that are multiples of this are kept too, for ever; 0 for none."""
    mirror: CheckpointMirror | None = None
    may_write: Callable[[], bool] = lambda: True
    """False once another process has taken the run over. Only rank 0 is asked."""

    def check(self) -> None:
        """Raises Superseded if this process must not write any more."""
        if not self.may_write():
            raise Superseded("another process has taken over this training run; its checkpoint is not kept")


def save_checkpoint(
    place: CheckpointPlace,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    attachments: dict[str, bytes],
) -> None:
    """Write a checkpoint and return when it is whole. Every rank must call it.

    Args:
        state: what a resumed run needs besides tensors, as JSON types; `step` is added.
        attachments: further files by name, such as config.json.

    Raises:
        Superseded: another process has taken the run over.
    """
    tensors = in_model_rows(named_tensors(model, optimizer), model)
    write_checkpoint(place, RankGroup(), step, tensors, files_beside(step, state, attachments))


def files_beside(step: int, state: dict[str, Any], attachments: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a checkpoint that are not tensors, by name."""
    return attachments | {STATE: as_json({"step": step, **state})}


def write_checkpoint(
    place: CheckpointPlace, ranks: RankGroup, step: int, tensors: dict[str, Tensor], files: dict[str, bytes]
) -> None:
    """Write `place.folder`/step-NNNNNNNN of tensors that nobody changes meanwhile, then remove what is not to
    be kept. Every rank must call it, with its shards and the same files.
    """
    name = checkpoint_name(step)
    # A name of this attempt alone: one that was given up for dead may still be writing the same step.
    mark = ranks.first_does(lambda: _mark(place))
    partial = place.folder / f".{name}.{mark}.partial"
    try:
        ranks.all_do(lambda: _begin(place, ranks, partial))
        try:
            dcp.save(
                tensors,
                storage_writer=FileSystemWriter(partial / TENSORS),
                process_group=ranks.group,
                no_dist=not ranks.several,
            )
        except CheckpointException as error:  # what some rank met; a BaseException, which no caller expects
            raise RuntimeError(str(error)) from error
        ranks.first_does(lambda: _write_files(place, partial, files))
        shares = ranks.all_do(lambda: _finish_own(place, ranks, name, partial))
        written = {file: entry for share in shares for file, entry in share.items()}
        manifest = manifest_json(step, written, is_kept_for_ever(step, place.keep_every))
        ranks.first_does(lambda: _commit(place, name, partial, manifest))
    finally:
        # What a failure has left; with a mirror, also what is on machines other than rank 0's.
        if ranks.rank == 0 or place.mirror is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _mark(place: CheckpointPlace) -> str:
    place.check()
    return uuid.uuid4().hex[:8]


def _begin(place: CheckpointPlace, ranks: RankGroup, partial: Path) -> None:
    """Make the folder, and room in place of what processes that were killed have left."""
    if place.mirror is None and ranks.rank != 0:
        return
    for left in place.folder.glob(".step-*.partial"):
        if left != partial:
            shutil.rmtree(left, ignore_errors=True)
    (partial / TENSORS).mkdir(parents=True, exist_ok=True)


def _write_files(place: CheckpointPlace, partial: Path, files: dict[str, bytes]) -> None:
    for file, content in files.items():
        (partial / file).write_bytes(content)
    place.check()  # What comes next may replace files of the same name that the successor has uploaded.


def _finish_own(place: CheckpointPlace, ranks: RankGroup, name: str, partial: Path) -> dict[str, Any]:
    """What the manifest says of the files that this rank wrote, which the mirror has then."""
    own = {}
    for path in sorted(partial.rglob("*")):
        writer = path.name.removeprefix("__").split("_")[0] if path.suffix == ".distcp" else "0"
        if path.is_file() and writer == str(ranks.rank):
            own[path.relative_to(partial).as_posix()] = describe(path)
    if place.mirror is not None:
        place.mirror.upload(name, list(own), partial)
    return own


def _commit(place: CheckpointPlace, name: str, partial: Path, manifest: bytes) -> None:
    (partial / MANIFEST).write_bytes(manifest)
    _sync_tree(partial)
    place.check()
    final = place.folder / name
    if final.exists():  # A run that was set back past a damaged checkpoint arrives here again.
        shutil.rmtree(final)
    os.replace(partial, final)
    _sync(place.folder)
    if place.mirror is None:
        for old in superfluous(checkpoints_in(place.folder), name, place.keep, place.keep_every):
            shutil.rmtree(place.folder / old)
        return
    place.mirror.seal(name, manifest)
    for old in superfluous(place.mirror.names(), name, place.keep, place.keep_every):
        place.mirror.remove(old)
    for old in superfluous(checkpoints_in(place.folder), name, place.keep, keep_every=0):
        # Only copies, which who reads one on this machine may be at.
        shutil.rmtree(place.folder / old, ignore_errors=True)


def superfluous(names: list[str], saved: str, keep: int, keep_every: int) -> list[str]:
    """Of checkpoints, newest first, those to remove: all but the newest `keep` and those of multiples of
    `keep_every`; and any that is later than the one just saved, which the run was set back past because it is
    damaged.
    """
    later = [each for each in names if each > saved]
    older = [each for each in names if each <= saved][keep:]
    return later + [each for each in older if not is_kept_for_ever(step_of(each), keep_every)]


def is_kept_for_ever(step: int, keep_every: int) -> bool:
    """Whether it is one of every `keep_every` steps; 0 for none."""
    return keep_every > 0 and step % keep_every == 0


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
