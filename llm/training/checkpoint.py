"""Checkpoints: `step-NNNNNNNN/{config.json, tokenizer.model, dcp/, state.json, manifest.json}`.

A checkpoint is written below a temporary name, synced, and renamed, its manifest last: a folder `step-N`
whose manifest agrees with its bytes is whole. Anything else (a torn write, a flipped bit) is passed over on
resume. `dcp/` is readable on any number of ranks, since it stores tensors by name and not by rank.
"""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemWriter

from llm.training.checkpoint_files import SafeReader

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    attachments: dict[str, bytes],
    keep: int,
) -> None:
    """Write `folder`/step-NNNNNNNN and remove all but the newest `keep` checkpoints. Every rank must call it.

    Args:
        state: what a resumed run needs besides tensors, as JSON types; `step` is added.
        attachments: further files by name, such as config.json.
    """
    final, partial = folder / f"step-{step:08d}", folder / f".step-{step:08d}.partial"
    if _rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "dcp").mkdir(parents=True)
    _barrier()
    dcp.save(
        _tensors(model, optimizer),
        storage_writer=FileSystemWriter(partial / "dcp"),
        no_dist=not _distributed(),
    )
    _barrier()
    if _rank() == 0:
        for name, content in attachments.items() | {"state.json": _json({"step": step, **state})}.items():
            (partial / name).write_bytes(content)
        files = {str(p.relative_to(partial)): _describe(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        (partial / MANIFEST).write_bytes(_json({"step": step, "files": files}))
        _sync_tree(partial)
        if final.exists():  # A run that was set back past a damaged checkpoint arrives here again.
            shutil.rmtree(final)
        os.replace(partial, final)
        _sync(folder)
        for old in _all(folder)[keep:]:
            shutil.rmtree(old)
    _barrier()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose every byte is as its manifest says, or None. Every rank gets rank 0's
    answer.
    """
    found: list[Path | None] = [None]
    if _rank() == 0:
        for path in _all(folder):
            problem = what_is_wrong(path)
            if problem is None:
                found = [path]
                break
            warnings.warn(f"checkpoint {path} is damaged ({problem}); trying the one before it", stacklevel=2)
    if _distributed():
        dist.broadcast_object_list(found)
    return found[0]


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
    state: dict[str, Any] = json.loads((path / "state.json").read_bytes())
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
