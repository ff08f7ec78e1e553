"""Matrices that hold several in their rows, and how ranks divide them.

q, k and v are one matrix, gate and up another, k and v of what an encoder has read a third. Divided among
ranks, each rank must hold its heads of all three, its columns of both. Cut into consecutive rows the whole
would give one rank q and another v, so its rows are put in the order of ranks first:

    by part   q₀ q₁ | k₀ k₁ | v₀ v₁          as models and files have them
    by rank   q₀ k₀ v₀ | q₁ k₁ v₁            as two ranks divide them
"""

import torch
from torch import Tensor

from llm.models.config import ModelConfig


def fused_rows(name: str, config: ModelConfig) -> tuple[int, ...] | None:
    """Rows of each part of the parameter that `name` holds the name of; None if it is one matrix."""
    if "attention.qkv." in name:
        kv = config.n_kv_heads * config.head_dim
        return config.n_heads * config.head_dim, kv, kv
    if "cross.kv." in name:
        return (config.n_kv_heads * config.head_dim,) * 2
    if "mlp.gate_up." in name:
        return config.d_ff, config.d_ff
    return None


def by_rank(whole: Tensor, rows: tuple[int, ...], ranks: int) -> Tensor:
    """Rows in the order of parts -> in the order of ranks. `ranks` divides every part."""
    parts = [part.chunk(ranks) for part in whole.split(rows)]
    return torch.cat([part[rank] for rank in range(ranks) for part in parts])


def by_part(divided: Tensor, rows: tuple[int, ...], ranks: int) -> Tensor:
    """The way back."""
    pieces = [each.split([part // ranks for part in rows]) for each in divided.chunk(ranks)]
    return torch.cat([piece[part] for part in range(len(rows)) for piece in pieces])


TENSOR = "tensor"
"""Name of the mesh dimension whose ranks divide matrices."""


def ranks_dividing(parameter: Tensor) -> int:
    """Ranks of the dimension `TENSOR` that hold different rows of a distributed tensor; 1 if none do."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or TENSOR not in (mesh.mesh_dim_names or ()):
        return 1
    dimension = mesh.mesh_dim_names.index(TENSOR)
    placement = parameter.placements[dimension]  # type: ignore[attr-defined]
    return mesh.size(dimension) if placement.is_shard(0) else 1


def in_its_order(whole: Tensor, name: str, parameter: Tensor, config: ModelConfig) -> Tensor:
    """`whole`, rows in the order of parts, with its rows as the ranks that hold `parameter` divide them."""
    ranks = ranks_dividing(parameter)
    rows = fused_rows(name, config) if ranks > 1 else None
    return whole if rows is None else by_rank(whole, rows, ranks)


def in_model_order(whole: Tensor, name: str, parameter: Tensor, config: ModelConfig) -> Tensor:
    """The way back."""
    ranks = ranks_dividing(parameter)
    rows = fused_rows(name, config) if ranks > 1 else None
    return whole if rows is None else by_part(whole, rows, ranks)
