"""Checkpoints: `step-NNNNNNNN/{config.json, tokenizer.model, dcp/, state.json, manifest.json}`.

A checkpoint is written below a temporary name, synced, and renamed, its manifest last: a folder `step-N`
whose manifest agrees with its bytes is whole. Anything else (a torn write, a flipped bit) is passed over on
resume. `dcp/` is readable on any number of ranks, since it stores tensors by name and not by rank.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException

from llm.training.checkpoint_files import SafeReader
from llm.training.checkpoint_mirror import CheckpointMirror

MANIFEST, STATE = "manifest.json", "state.json"


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    attachments: dict[str, bytes],
    keep: int,
    mirror: CheckpointMirror | None = None,
) -> None:
    """Write `folder`/step-NNNNNNNN and remove all but the newest `keep` checkpoints. Every rank must call it.

    Args:
        folder: the same folder for all ranks; with a mirror, one of each rank's own machine.
        state: what a resumed run needs besides tensors, as JSON types; `step` is added.
        attachments: further files by name, such as config.json.
    """
    name = f"step-{step:08d}"
    final, partial = folder / name, folder / f".{name}.partial"
    if _rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    _barrier()
    (partial / "dcp").mkdir(parents=True, exist_ok=True)
    _barrier()
    try:
        dcp.save(
            _tensors(model, optimizer),
            storage_writer=FileSystemWriter(partial / "dcp"),
            no_dist=not _distributed(),
        )
    except CheckpointException as error:  # what some rank met; a BaseException, which no caller expects
        raise RuntimeError(str(error)) from error
    if _rank() == 0:
        for file, content in attachments.items() | {STATE: _json({"step": step, **state})}.items():
            (partial / file).write_bytes(content)
    own = _own_files(partial)
    if mirror is not None:
        mirror.upload(name, list(own), partial)
    files = _union(own)
    if _rank() == 0:
        manifest = _json({"step": step, "files": files})
        (partial / MANIFEST).write_bytes(manifest)
        _sync_tree(partial)
        if final.exists():  # A run that was set back past a damaged checkpoint arrives here again.
            shutil.rmtree(final)
        os.replace(partial, final)
        _sync(folder)
        if mirror is not None:
            mirror.seal(name, manifest)
            for old in _superfluous(mirror.names(), name, keep):
                mirror.remove(old)
        for old in _superfluous([path.name for path in _all(folder)], name, keep):
            shutil.rmtree(folder / old)
    _barrier()
    if mirror is not None:
        shutil.rmtree(partial, ignore_errors=True)  # on machines other than rank 0's


def _superfluous(names: list[str], saved: str, keep: int) -> list[str]:
    """Of checkpoints, newest first, those to remove: all but `keep`, and any that is later than the one just
    saved, which the run was set back past because it is damaged.
    """
    return [each for each in names if each > saved] + [each for each in names if each <= saved][keep:]


def newest_checkpoint(folder: Path, mirror: CheckpointMirror | None = None) -> Path | None:
    """The newest checkpoint whose every byte is as its manifest says, or None; the same on every rank.

    With a mirror it is brought into `folder` first, on each machine.
    """
    names = _from_rank_0(lambda: mirror.names() if mirror else [path.name for path in _all(folder)])
    for name in names:
        problem = _problem_on_any_rank(folder / name, mirror)
        if problem is None:
            return folder / name
        if _rank() == 0:
            warnings.warn(
                f"checkpoint {folder / name} is damaged ({problem}); trying the one before it", stacklevel=2
            )
    return None


def newest_state(folder: Path, mirror: CheckpointMirror | None = None) -> dict[str, Any] | None:
    """`state.json` of the newest checkpoint that has a readable one, or None; the same on every rank.

    For what all checkpoints of a run have in common and what a model has to be built for: the tensors are not
    looked at.
    """
    state: dict[str, Any] | None = _from_rank_0(lambda: next(_states(folder, mirror), None))
    return state


def _states(folder: Path, mirror: CheckpointMirror | None) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        for name in mirror.names() if mirror else [path.name for path in _all(folder)]:
            place = Path(scratch, name) if mirror else folder / name
            try:
                if mirror:
                    mirror.download(name, [STATE], place)
                yield json.loads((place / STATE).read_bytes())
            except (FileNotFoundError, ValueError):
                continue


def _problem_on_any_rank(path: Path, mirror: CheckpointMirror | None) -> str | None:
    if mirror is None:  # All ranks see one folder: one of them checks it.
        problem: str | None = _from_rank_0(lambda: what_is_wrong(path))
        return problem
    problems: list[str | None] = [None] * (dist.get_world_size() if _distributed() else 1)
    _bring(path, mirror)
    problem = what_is_wrong(path)
    if not _distributed():
        return problem
    dist.all_gather_object(problems, problem)
    return next((each for each in problems if each is not None), None)


def _bring(path: Path, mirror: CheckpointMirror) -> None:
    """Make `path` a copy of the mirror's checkpoint. Ranks of one machine take turns: the first does it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest = mirror.manifest(path.name)
        is_copy = (path / MANIFEST).is_file() and (path / MANIFEST).read_bytes() == manifest
        if is_copy and what_is_wrong(path) is None:
            return
        shutil.rmtree(path, ignore_errors=True)
        try:
            files = list(json.loads(manifest)["files"])
        except (ValueError, KeyError):
            return  # What is wrong will be that there is no manifest.
        mirror.download(path.name, files, path)
        (path / MANIFEST).write_bytes(manifest)


def what_is_wrong(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, in a few words; None if it is whole."""
    try:
        files = json.loads((path / MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, KeyError):
        return f"no readable {MANIFEST}"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if _describe(file) != expected:
            return f"{name} has changed"
    return None


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill `model` and `optimizer` from a checkpoint written on any number of ranks; returns its state."""
    tensors = _tensors(model, optimizer)
    dcp.load(tensors, storage_reader=SafeReader(path / "dcp"), no_dist=not _distributed())
    state: dict[str, Any] = json.loads((path / STATE).read_bytes())
    return state


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of a training run by a name of its own; optimizer state that is not there yet is made.

    Hyper-parameters are not among them: they come from the configuration, and would be pickled.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
    return tensors


def _own_files(partial: Path) -> dict[str, Any]:
    """What this rank wrote: its shards; rank 0 also all that is not a shard."""
    files = {}
    for path in sorted(partial.rglob("*")):
        writer = path.name.removeprefix("__").split("_")[0] if path.suffix == ".distcp" else "0"
        if path.is_file() and writer == str(_rank()):
            files[str(path.relative_to(partial))] = _describe(path)
    return files


def _union(own: dict[str, Any]) -> dict[str, Any]:
    """The files of all ranks."""
    if not _distributed():
        return own
    every: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, own)
    return {name: entry for files in every for name, entry in sorted(files.items())}


def _from_rank_0(answer: Callable[[], Any]) -> Any:
    """What rank 0 finds, on every rank."""
    found = [answer() if _rank() == 0 else None]
    if _distributed():
        dist.broadcast_object_list(found)
    return found[0]


def _all(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _distributed() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if _distributed():
        dist.barrier()
