"""From scored rollouts to what PPO learns from.

score ──► reward of each token ──► advantage ──► (whitened) advantage, return
          (KL penalty on all,      (GAE under
           score on the last)       the critic)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llm.alignment.advantages import gae, whiten
from llm.alignment.ppo import token_rewards


@dataclass(frozen=True)
class Experience:
    """All (batch, seq − 1) float32, 0 where no response token is predicted, as in `Batch.mask`."""

    log_probs: Tensor
    """Of the policy that sampled, as the learner computes them."""
    values: Tensor
    advantages: Tensor
    """Whitened over the whole iteration."""
    returns: Tensor
    """The critic's target."""

    def rows(self, index: Tensor, width: int) -> Experience:
        """The rollouts at `index`, cut to `width` predictions."""
        cut = (field[index, :width] for field in (self.log_probs, self.values, self.advantages, self.returns))
        return Experience(*cut)


def raw_experience(
    *,
    scores: Tensor,
    log_probs: Tensor,
    reference_log_probs: Tensor,
    values: Tensor,
    mask: Tensor,
    beta: float,
    gamma: float,
    lam: float,
) -> Experience:
    """Experience whose advantages are not whitened yet; `scores` (batch,), everything else (batch, seq −
    1).
    """
    rewards = token_rewards(scores, log_probs, reference_log_probs, mask, beta)
    advantages = gae(rewards, values, mask, gamma, lam)
    returns = torch.where(mask, advantages + values, 0.0)
    return Experience(log_probs, values, advantages, returns)


def whitened(experience: Experience, mask: Tensor) -> Experience:
    """The same with whitened advantages."""
    advantages = whiten(experience.advantages, mask)
    return Experience(experience.log_probs, experience.values, advantages, experience.returns)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(R − V) / Var(R) over valid tokens: 1 for a perfect critic, 0 for a constant one."""
    target = returns[mask].double()
    spread = target.var(correction=0)
    if spread == 0:
        return 0.0
    return (1 - (target - values[mask].double()).var(correction=0) / spread).item()
