"""Steps that stand out, and are not taken: one bad batch then does no harm.

A step is an outlier if its loss or its gradient's norm is more than k standard deviations above the mean of
the steps before it (OLMo-core's skip-step; OLMo 2, 2025, arXiv:2501.00656, has 6 σ over 128 steps):

    x > mean + k · std        of the last 128 x, with the unbiased standard deviation

An outlier enters the window like any other step: a loss that has risen for good is soon no outlier.
"""

import statistics
from collections import deque
from typing import Any

WINDOW = 128
ENOUGH = WINDOW // 2
"""Steps that must be known before one can stand out."""


class Outliers:
    """The losses and gradient norms of the last steps, and how many steps were skipped on their account.

    The state is a few hundred floats; in a checkpoint it makes a resumed run skip what it would have skipped.

    Args:
        sigmas: k above.
    """

    def __init__(self, sigmas: float) -> None:
        self._sigmas = sigmas
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self.skipped = 0
        """Steps so far that were outliers."""

    def is_outlier(self, loss: float, grad_norm: float) -> bool:
        """Whether a step stands out from those before; it is remembered either way."""
        outlier = self._stands_out(loss, self._losses) or self._stands_out(grad_norm, self._norms)
        self._losses.append(loss)
        self._norms.append(grad_norm)
        self.skipped += outlier
        return outlier

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON types."""
        return {"losses": [*self._losses], "grad_norms": [*self._norms], "skipped": self.skipped}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._losses.extend(state["losses"])
        self._norms.extend(state["grad_norms"])
        self.skipped = state["skipped"]

    def _stands_out(self, value: float, before: deque[float]) -> bool:
        if len(before) < ENOUGH:
            return False
        return value > statistics.fmean(before) + self._sigmas * statistics.stdev(before)
