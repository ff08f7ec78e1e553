"""Sinusoidal positions, added to the embeddings (Vaswani et al., 2017, arXiv:1706.03762, §3.5)."""

import math

import torch
from torch import Tensor


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """positions (batch or 1, seq) -> (batch or 1, seq, d_model) fp32.

    p_2i   = sin(position / 10000^(2i / d_model))
    p_2i+1 = cos(position / 10000^(2i / d_model))
    """
    exponents = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float32) / d_model
    angles = positions.to(torch.float32).unsqueeze(-1) * torch.exp(-math.log(10000.0) * exponents)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
