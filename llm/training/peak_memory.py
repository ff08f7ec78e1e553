"""The most memory that a training process has held."""

import resource
import sys

import torch


def peak_memory(device: torch.device) -> dict[str, float]:
    """`peak_memory_bytes`, as a metric: of a GPU what torch had allocated at once, else resident memory."""
    if device.type == "cuda":
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
