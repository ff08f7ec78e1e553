"""Learning rate as a pure function of the step, so that there is no scheduler state to save."""

import math
from typing import Literal

Decay = Literal["cosine", "linear"]


def learning_rate(
    step: int, steps: int, warmup_steps: int, peak: float, minimum: float, decay: Decay = "cosine"
) -> float:
    """Learning rate of `step` (0-based) out of `steps`: linear warm-up, then half a cosine or a line.

        step < warm-up   peak · (step + 1) / warm-up
        cosine           minimum + (peak − minimum) · (1 + cos πt) / 2
        linear           minimum + (peak − minimum) · (1 − t)
                         with t = (step − warm-up) / (steps − warm-up)

    The last step (t just below 1) still moves; `minimum` itself is reached at step = steps. A line to zero
    is what Bergsma et al. (2025, arXiv:2502.15938) find best.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    left = 1 - progress if decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return minimum + (peak - minimum) * left
