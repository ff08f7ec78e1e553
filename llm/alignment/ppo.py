"""Proximal policy optimisation on tokens (Schulman et al. 2017, arXiv:1707.06347).

- `token_log_probs`: log π of given tokens, and the entropy of the distribution they were drawn from
- `token_rewards`: where the reward model's score and the KL penalty enter
- `policy_loss`, `value_loss`: the clipped losses

All losses are *sums divided by a denominator that the caller gives*: the number of valid tokens in the whole
minibatch, over all workers and micro-batches, so that splitting a minibatch changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def token_log_probs(
    logits: Tensor, tokens: Tensor, temperature: float, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """(log π(token), entropy), both (batch, seq) float32 nats, from `logits` (batch, seq, vocabulary).

    π = softmax(logits / temperature) over the first `vocab_size` entries: the very distribution the engine
    samples from, with the same temperature and without the padding of the vocabulary. Otherwise the ratio is
    biased.
    """
    scaled = logits[..., :vocab_size].float() / temperature
    log_probs = torch.log_softmax(scaled, dim=-1)
    chosen = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return chosen, entropy


def token_rewards(
    scores: Tensor, log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """Rewards (batch, seq) float32: r_t = −β·(log π − log π_ref)_t, plus the score on the last token.

    `scores` (batch,) belongs *on* the end token, the last valid one of `mask` (batch, seq) bool, whose own KL
    penalty stays. A row without valid tokens gets nothing.
    """
    rewards = torch.where(mask, -beta * (log_probs.float() - reference_log_probs.float()), 0.0)
    return rewards + torch.where(last_valid(mask), scores.float().unsqueeze(1), 0.0)


def last_valid(mask: Tensor) -> Tensor:
    """(batch, seq) bool: true at the last valid position of each row, if it has any."""
    remaining = mask.flip(1).cumsum(1).flip(1)
    return mask & (remaining == 1)


class PolicyLoss(NamedTuple):
    """`loss` carries the gradient; the others are detached sums over valid tokens."""

    loss: Tensor
    clipped: Tensor
    """Tokens whose ratio was clipped."""
    kl_from_old: Tensor
    """Σ k3 between the policy that sampled and this one."""


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    denominator: float,
) -> PolicyLoss:
    """Clipped surrogate over (batch, seq) tokens, divided by `denominator`.

    ρ = π(a) / π_old(a)        L = Σ max(−A·ρ, −A·clip(ρ, 1−ε, 1+ε)) / denominator
    """
    # A masked position may hold anything, even inf − inf: it must not reach exp, whose gradient would be NaN.
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip, 1.0 + clip)
    loss = torch.where(mask, torch.maximum(unclipped, clipped), 0.0).sum() / denominator
    with torch.no_grad():
        was_clipped = ((clipped > unclipped) & mask).sum()
        kl_from_old = torch.where(mask, torch.expm1(log_ratio) - log_ratio, 0.0).sum()
    return PolicyLoss(loss, was_clipped, kl_from_old)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float, denominator: float
) -> Tensor:
    """½ Σ max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²) / denominator over (batch, seq) tokens."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    error = torch.maximum((values - returns).square(), (near - returns).square())
    return 0.5 * torch.where(mask, error, 0.0).sum() / denominator
