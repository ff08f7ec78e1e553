"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864), in the half-split layout of Llama.

    frequency_i = theta^(−2i / head_dim)            i = 0 … head_dim/2 − 1, radians a token

Longer sequences than the model was first trained with, of `original` tokens, are reached by lower
frequencies. A frequency makes original · frequency / 2π turns within the original length.

    linear    frequency / factor                           (Chen et al., 2023, arXiv:2306.15595)
    llama3    frequency / factor      below `low` turns
              frequency               above `high` turns
              a line from the one to the other in between, in the number of turns
                                                           (Grattafiori et al., 2024, arXiv:2407.21783)
    yarn      the same, with a line in the index i in place of the turns, and cos and sin multiplied by
              0.1 · ln(factor) + 1                         (Peng et al., 2023, arXiv:2309.00071)
"""

import math

import torch
from torch import Tensor

from llm.models.config import ModelConfig, RopeScaling

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (batch or 1, seq, head_dim / 2), fp32."""


def rotation(positions: Tensor, config: ModelConfig) -> Rotation:
    """Cosines and sines of position · frequency for positions (batch or 1, seq).

    They are computed anew in every forward pass, once for all blocks: cheaper than it sounds, and there is
    then no table to re-fill after meta-device initialisation, nor a longest position.
    """
    frequencies, magnitude = rope_frequencies(config, positions.device)
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
    return angles.cos() * magnitude, angles.sin() * magnitude


def rope_frequencies(config: ModelConfig, device: torch.device | None = None) -> tuple[Tensor, float]:
    """(head_dim / 2,) fp32 radians a token, and what cosines and sines are multiplied by."""
    exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies, 1.0
    slowed = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slowed, 1.0
    if scaling.kind == "llama3":
        turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
        kept = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
        kept = kept.clamp(0, 1)
        return kept * frequencies + (1 - kept) * slowed, 1.0
    kept = 1 - _yarn_ramp(config, scaling, device)
    return kept * frequencies + (1 - kept) * slowed, 0.1 * math.log(scaling.factor) + 1


def _yarn_ramp(config: ModelConfig, scaling: RopeScaling, device: torch.device | None) -> Tensor:
    """(head_dim / 2,): 0 where a frequency is kept, 1 where it is divided by the factor.

    index of the frequency that makes so many turns = head_dim · ln(original / 2π turns) / 2 ln theta
    """

    def index(turns: float) -> float:
        length = scaling.original_max_seq_len / (2 * math.pi * turns)
        return config.head_dim * math.log(length) / (2 * math.log(config.rope_theta))

    low = max(math.floor(index(scaling.high_frequency)), 0)
    high = min(math.ceil(index(scaling.low_frequency)), config.head_dim - 1)
    indices = torch.arange(config.head_dim // 2, device=device, dtype=torch.float32)
    return ((indices - low) / max(high - low, 1e-3)).clamp(0, 1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair (x_i, x_{i + head_dim/2}) of x (batch, seq, heads, head_dim) by its position's angle.

    x_i'   = x_i cos − x_j sin
    x_j'   = x_j cos + x_i sin
    """
    cos, sin = (each.to(x.dtype).unsqueeze(-2) for each in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
