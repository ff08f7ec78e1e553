"""The norm of a gradient whose tensors are divided among ranks, each in its own way."""

from collections.abc import Sequence
from math import isfinite, prod, sqrt

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def total_norm(gradients: Sequence[Tensor]) -> float:
    """‖g‖ = √ Σ_ranks Σ_tensors ‖own part‖² / (ranks that hold the same part); equal on every rank.

    NaN or infinite if any part is.
    """
    total = torch.zeros((), dtype=torch.float64)
    if gradients:
        parts = [_local(gradient) for gradient in gradients]
        squares = torch.stack(torch._foreach_norm(parts)).double().square()
        held_by = torch.tensor([_copies(each) for each in gradients], device=squares.device)
        total = (squares / held_by).sum()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return sqrt(value) if isfinite(value := total.item()) else value


def scale_down(gradients: Sequence[Tensor], norm: float, clip_norm: float) -> None:
    """Multiply by clip_norm / norm in place, if that is less than 1."""
    if norm > clip_norm:
        torch._foreach_mul_([_local(gradient) for gradient in gradients], clip_norm / norm)


def held_by_stages(gradient: Tensor, stages: int) -> None:
    """Note that so many stages of a pipeline have this gradient."""
    gradient.stages = stages  # type: ignore[attr-defined]


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _copies(gradient: Tensor) -> int:
    """Ranks that hold the same part: of a plain tensor all do."""
    if not isinstance(gradient, DTensor):
        return dist.get_world_size() if dist.is_initialized() else 1
    mesh = gradient.device_mesh
    within = prod(mesh.size(i) for i, each in enumerate(gradient.placements) if each.is_replicate())
    return within * getattr(gradient, "stages", 1)
