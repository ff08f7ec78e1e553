"""Advantages of the tokens of a response.

- `gae`: generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438)
- `whiten`: zero mean and unit variance over the valid tokens
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


def whiten(x: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """(x − mean) / √(variance + ε) at valid entries, 0 at masked ones; shape and dtype of `x`."""
    valid = x[mask].double()
    white = (x.double() - valid.mean()) * torch.rsqrt(valid.var(correction=0) + epsilon)
    return torch.where(mask, white, 0.0).to(x.dtype)
