"""The weights in a checkpoint, read by one process: to export any that a run keeps, while it goes on."""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llm.training.checkpoint_files import SafeReader
from llm.training.checkpoint_manifest import TENSORS, what_is_wrong
from llm.training.checkpoint_tensors import WEIGHTS


def read_weights(path: Path) -> dict[str, Tensor]:
    """Whole fp32 weights by parameter name on the CPU, as `gather_weights` gave them at that step; of a run
    that trains adapters, theirs alone.

    path: a checkpoint's folder, written on any number of ranks. Neither a process group nor a model is
    needed, and of the optimizer's state nothing is read into memory.

    Raises:
        ValueError: the checkpoint is damaged, or has been removed.
    """
    problem = what_is_wrong(path)
    if problem is not None:
        raise ValueError(f"{path} is not a whole checkpoint: {problem}")
    reader = SafeReader(path / TENSORS)
    tensors: dict[str, Tensor] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        if name.startswith(WEIGHTS) and isinstance(entry, TensorStorageMetadata):
            tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix(WEIGHTS): tensor.float() for name, tensor in tensors.items()}
