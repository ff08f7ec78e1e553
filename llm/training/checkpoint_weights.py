"""The weights in a checkpoint, read by one process: to export any that a run keeps, while it goes on."""

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llm.training.checkpoint_files import SafeReader
from llm.training.checkpoint_manifest import TENSORS, what_is_wrong
from llm.training.checkpoint_tensors import WEIGHTS, in_state
from llm.training.ema import AVERAGE, TAKEN


def read_weights(path: Path) -> dict[str, Tensor]:
    """Whole fp32 weights by parameter name on the CPU, as `gather_weights` gives them if the run ends at that
    step: their averages where it keeps such; of a run that trains adapters, theirs alone.

    path: a checkpoint's folder, written on any number of ranks. Neither a process group nor a model is
    needed, and of the optimizer's state nothing but averages is read into memory.

    Raises:
        ValueError: the checkpoint is damaged, or has been removed, maybe while it was read.
    """
    problem = what_is_wrong(path)
    if problem is not None:
        raise ValueError(f"{path} is not a whole checkpoint: {problem}")
    try:
        return _read(SafeReader(path / TENSORS))
    except (OSError, CheckpointException) as error:  # the latter is a BaseException, which no caller expects
        raise ValueError(f"{path} cannot be read: {error}") from error


def _read(reader: SafeReader) -> dict[str, Tensor]:
    entries = {
        name: entry
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }

    def load(names: list[str]) -> list[Tensor]:
        tensors = {n: torch.empty(entries[n].size, dtype=entries[n].properties.dtype) for n in set(names)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be
            dcp.load(tensors, storage_reader=reader, no_dist=True)
        return [tensors[name] for name in names]

    weights = [name.removeprefix(WEIGHTS) for name in entries if name.startswith(WEIGHTS)]
    averaged = [name for name in weights if in_state(name, AVERAGE) in entries]
    steps = load([in_state(name, TAKEN) for name in averaged]) if averaged else []
    averages = {name for name, taken in zip(averaged, steps, strict=True) if taken.item()}
    found = load([in_state(n, AVERAGE) if n in averages else f"{WEIGHTS}{n}" for n in weights])
    return {name: tensor.float() for name, tensor in zip(weights, found, strict=True)}
