"""How far the policy has moved from its reference.

- `kl_estimate`: per-token Monte-Carlo estimators k1, k2, k3 (Schulman 2020, joschu.net/blog/kl-approx.html)
- `AdaptiveKL`: the coefficient β as a proportional controller (Ziegler et al. 2019, arXiv:1909.08593)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor, estimator: Estimator = "k3") -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) at tokens sampled from π; any shape, float32.

        x = log π − log π_ref        k1 = x        k2 = x²/2        k3 = e^{−x} − 1 + x

    k1 and k3 are unbiased, k2 is not; k2 and k3 are never negative and vary less. These are numbers to report
    or to put into a reward. As *losses* they differ: the gradient of k1 is 0 in expectation and that of k3 is
    the reversed KL's; only k2's gradient is that of the KL.
    """
    x = log_probs.float() - reference_log_probs.float()
    if estimator == "k1":
        return x
    if estimator == "k2":
        return x.square() / 2
    return torch.expm1(-x) + x


@dataclass(frozen=True)
class AdaptiveKL:
    """β that grows while the measured KL is above `target` nats and shrinks while it is below.

        β ← β · (1 + clip(KL/target − 1, −0.2, 0.2) · n / horizon)        n: episodes since the last update

    A `target` of None keeps β as it is.
    """

    beta: float
    target: float | None = None
    horizon: int = 10_000

    def updated(self, kl: float, episodes: int) -> AdaptiveKL:
        """The controller after `episodes` responses whose mean KL was `kl` nats a response."""
        if self.target is None:
            return self
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return replace(self, beta=self.beta * (1.0 + error * episodes / self.horizon))
