"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864), in the half-split layout of Llama."""

import torch
from torch import Tensor


def rope_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `position · theta^(-2i/head_dim)`, fp32, (*positions.shape, head_dim / 2).

    They are computed anew in every forward pass, once for all blocks: cheaper than it sounds, and there is
    then no table to re-fill after meta-device initialisation, nor a longest position.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.to(torch.float32).unsqueeze(-1) * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + head_dim/2}) of x (batch, seq, heads, head_dim) by its position's angle.

    x_i'   = x_i cos − x_j sin
    x_j'   = x_j cos + x_i sin
    """
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
