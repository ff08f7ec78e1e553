"""Advantages of the tokens of a response.

- `gae`: generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438)
- `masked_moments`, `whiten`: zero mean and unit variance over the valid tokens of the *global* batch
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages (batch, seq) float32 of `rewards` under the critic's `values`, both (batch, seq).

        δ_t = r_t + γ·V_{t+1} − V_t          A_t = δ_t + γλ·A_{t+1}

    where t+1 is the next *valid* token (`mask`, (batch, seq) bool) and V, A are 0 after the last one: the
    recursion is carried through masked positions and never reads them. Masked positions get 0. The critic's
    target is `A + values`, taken before whitening.
    """
    rewards, values = rewards.float(), values.float()
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(mask[:, t], next_advantage, 0.0)
    return advantages


def masked_moments(x: Tensor, mask: Tensor) -> Tensor:
    """(count, Σx, Σx²) float64 over valid entries; summed over workers, those of the global batch."""
    valid = x[mask].double()
    return torch.stack([mask.sum().double(), valid.sum(), valid.square().sum()])


def whiten(x: Tensor, mask: Tensor, moments: Tensor | None = None, epsilon: float = 1e-8) -> Tensor:
    """(x − mean) / √(variance + ε) at valid entries, 0 at masked ones; shape and dtype of `x`.

    `moments` are those of `masked_moments`, of this batch when left out.
    """
    count, total, squares = masked_moments(x, mask) if moments is None else moments
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0.0)
    white = (x.double() - mean) * torch.rsqrt(variance + epsilon)
    return torch.where(mask, white, 0.0).to(x.dtype)
