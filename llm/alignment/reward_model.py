"""Reward models from rankings.

- `plackett_luce_loss`: K responses in order, ties allowed (Luce 1959; Plackett 1975)
- `pairwise_agreement`: how many strictly ordered pairs the scores order the same way

A response's score is that of its last token: `llm.models.heads.last_token_scores`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def plackett_luce_loss(scores: Tensor, ranks: Tensor, denominator: float) -> Tensor:
    """−log P(ranking) summed over rankings and divided by `denominator`, a scalar.

    `scores` (rankings, K) float; `ranks` (rankings, K) int, 1 is best, equal numbers are ties, 0 is padding.

        L = −Σᵢ (sᵢ − log Σ_{j: rank_j ≥ rank_i} exp sⱼ)

    Without ties this is Plackett-Luce, and for K = 2 Bradley-Terry: −log σ(s_w − s_l). Tied responses are
    treated after Breslow (1974, Biometrics 30:89; for rankings Allison & Christakis 1994, Sociological
    Methodology 24:199): each is chosen from the set that holds all of them, so that a tie pulls their scores
    together. For K = 2 a tie costs −log σ(d) − log σ(−d), the two orders' losses together, least at d = 0.
    """
    scores = scores.float()
    valid = ranks > 0
    # stands[n, i, j]: response j is still to be ranked when i is chosen
    stands = (ranks.unsqueeze(1) >= ranks.unsqueeze(2)) & valid.unsqueeze(1)
    remaining = torch.where(stands, scores.unsqueeze(1), -torch.inf)
    # Without a competitor a padded row would give logsumexp(∅) = −∞ and a NaN gradient: it meets itself.
    remaining = torch.where(valid.unsqueeze(2), remaining, scores.unsqueeze(2))
    losses = torch.logsumexp(remaining, dim=2) - scores
    return torch.where(valid, losses, 0.0).sum() / denominator


def pairwise_agreement(scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """(agreeing, pairs): strictly ordered pairs of `ranks` that the scores order alike; equal scores ½."""
    valid = ranks > 0
    better = (ranks.unsqueeze(2) < ranks.unsqueeze(1)) & valid.unsqueeze(2) & valid.unsqueeze(1)
    margin = scores.unsqueeze(2) - scores.unsqueeze(1)
    agrees = (margin > 0).double() + 0.5 * (margin == 0).double()
    return agrees[better].sum(), better.sum()
