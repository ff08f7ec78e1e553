"""Finding a run's newest good checkpoint, and loading it.

`checkpoint_manifest` says what one consists of, `checkpoint_writing` how it comes about. A torn write or a
flipped bit is passed over. `dcp/` is readable on any number of ranks, since it stores tensors by name and not
by rank.
"""

import fcntl
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from llm.training.checkpoint_files import SafeReader
from llm.training.checkpoint_manifest import (
    MANIFEST,
    STATE,
    TENSORS,
    checkpoint_name,
    checkpoints_in,
    files_in,
    what_is_wrong,
)
from llm.training.checkpoint_mirror import CheckpointMirror
from llm.training.checkpoint_ranks import RankGroup
from llm.training.checkpoint_tensors import named_tensors
from llm.training.parallel.weights import in_model_rows


def newest_checkpoint(
    folder: Path, mirror: CheckpointMirror | None = None, step: int | None = None
) -> Path | None:
    """The newest checkpoint whose every byte is as its manifest says, or None; the same on every rank.

    With a mirror it is brought into `folder` first, on each machine.

    step: look at the checkpoint of this step alone.
    """
    names = RankGroup().first_does(lambda: mirror.names() if mirror else checkpoints_in(folder))
    for name in names if step is None else {checkpoint_name(step)} & set(names):
        problem = _problem_on_any_rank(folder / name, mirror)
        if problem is None:
            return folder / name
        if RankGroup().rank == 0:
            warnings.warn(
                f"checkpoint {folder / name} is damaged ({problem}); trying the one before it", stacklevel=2
            )
    return None


def newest_state(folder: Path, mirror: CheckpointMirror | None = None) -> dict[str, Any] | None:
    """`state.json` of the newest checkpoint that has a readable one, or None; the same on every rank.

    For what all checkpoints of a run have in common and what a model has to be built for: the tensors are not
    looked at.
    """
    return RankGroup().first_does(lambda: next(_states(folder, mirror), None))


def _states(folder: Path, mirror: CheckpointMirror | None) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        for name in mirror.names() if mirror else checkpoints_in(folder):
            place = Path(scratch, name) if mirror else folder / name
            try:
                if mirror:
                    mirror.download(name, [STATE], place)
                yield json.loads((place / STATE).read_bytes())
            except (FileNotFoundError, ValueError):
                continue


def _problem_on_any_rank(path: Path, mirror: CheckpointMirror | None) -> str | None:
    if mirror is None:  # All ranks see one folder: one of them checks it.
        return RankGroup().first_does(lambda: what_is_wrong(path))

    def bring_and_check() -> str | None:
        _bring(path, mirror)
        return what_is_wrong(path)

    return next((problem for problem in RankGroup().all_do(bring_and_check) if problem is not None), None)


def _bring(path: Path, mirror: CheckpointMirror) -> None:
    """Make `path` a copy of the mirror's checkpoint, damage included. Ranks of one machine take turns: the
    first does it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            manifest = mirror.manifest(path.name)
            is_copy = (path / MANIFEST).is_file() and (path / MANIFEST).read_bytes() == manifest
            if is_copy and what_is_wrong(path) is None:
                return
            shutil.rmtree(path, ignore_errors=True)
            mirror.download(path.name, list(files_in(manifest)), path)
        except (FileNotFoundError, ValueError):
            return  # What is wrong will be that there is no manifest.
        (path / MANIFEST).write_bytes(manifest)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill `model` and `optimizer` from a checkpoint written on any number of ranks; returns its state."""
    tensors = in_model_rows(named_tensors(model, optimizer), model)
    dcp.load(tensors, storage_reader=SafeReader(path / TENSORS), no_dist=not RankGroup().several)
    state: dict[str, Any] = json.loads((path / STATE).read_bytes())
    return state
