"""T5's relative position bias (Raffel et al., 2020, arXiv:1910.10683, §2.1): learned, by distance and head.

Near distances have a bucket each; farther ones share buckets that grow like the logarithm of the distance;
all from `max_distance` on share the last one. An encoder has half of the buckets for each direction.
"""

import math

import torch
from torch import Tensor, nn

from llm.models.config import ModelConfig


class RelativeBias(nn.Module):
    """One table for all blocks of a stack."""

    def __init__(self, config: ModelConfig, both_ways: bool) -> None:
        super().__init__()
        self.both_ways = both_ways
        self.max_distance = config.relative_max_distance
        self.weight = nn.Parameter(torch.empty(config.relative_buckets, config.n_heads))

    def forward(self, seq_len: int) -> Tensor:
        """(n_heads, 2 · seq_len − 1): the bias at each distance (key − query), from −(seq_len − 1) up."""
        distances = torch.arange(1 - seq_len, seq_len, device=self.weight.device)
        return self.weight[relative_buckets(distances, len(self.weight), self.max_distance, self.both_ways)].T


def relative_buckets(distances: Tensor, buckets: int, max_distance: int, both_ways: bool) -> Tensor:
    """The bucket of each distance (key − query), int64; without `both_ways` keys ahead share bucket 0.

    n = |distance|, B = buckets of a direction

        n                                                        n < B/2
        B/2 + ⌊B/2 · ln(n / (B/2)) / ln(max_distance / (B/2))⌋   else, at most B − 1
    """
    if both_ways:
        buckets //= 2
        first, n = (distances > 0) * buckets, distances.abs()
    else:
        first, n = torch.zeros_like(distances), -distances.clamp(max=0)
    exact = buckets // 2
    growth = torch.log(n.clamp(min=1) / exact) / math.log(max_distance / exact)
    shared = exact + (growth * (buckets - exact)).long()
    return first + torch.where(n < exact, n, shared.clamp(max=buckets - 1))
