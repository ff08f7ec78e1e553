"""Learning rate as a pure function of the step, so that there is no scheduler state to save."""

import math


def warmup_cosine(step: int, steps: int, warmup_steps: int, peak: float, minimum: float) -> float:
    """Learning rate of `step` (0-based) out of `steps`: linear warm-up, then half a cosine.

        step < warm-up   peak · (step + 1) / warm-up
        then             minimum + (peak − minimum) · (1 + cos πt) / 2
                         with t = (step − warm-up) / (steps − warm-up)

    The last step (t just below 1) still moves; `minimum` itself is reached at step = steps.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * progress)) / 2
