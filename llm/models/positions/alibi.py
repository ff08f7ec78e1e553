"""Attention with linear biases (Press et al., 2022, arXiv:2108.12409): far keys count less, with no table."""

import math

import torch
from torch import Tensor


def alibi_bias(n_heads: int, seq_len: int, device: torch.device | None = None) -> Tensor:
    """(n_heads, 2 · seq_len − 1) fp32: −slope_h · |distance|, for distances from −(seq_len − 1) up."""
    distances = torch.arange(1 - seq_len, seq_len, device=device, dtype=torch.float32)
    return -alibi_slopes(n_heads).to(device).unsqueeze(1) * distances.abs()


def alibi_slopes(n_heads: int) -> Tensor:
    """(n_heads,) fp32.

    slope_h = 2^(−8h / n)     h = 1 … n, where n is a power of two

    With other numbers of heads, those of the power of two below and then every second one of the power above
    (as in the authors' code).
    """
    power = 2 ** math.floor(math.log2(n_heads))
    exponents = [-8 * h / power for h in range(1, power + 1)]
    exponents += [-8 * h / (2 * power) for h in range(1, 2 * power, 2)][: n_heads - power]
    return torch.tensor(exponents, dtype=torch.float32).exp2()
