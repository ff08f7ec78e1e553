"""Learning rate as a pure function of the step, so that there is no scheduler state to save."""

import math
from typing import Literal

Decay = Literal["cosine", "linear", "wsd"]
DecayShape = Literal["1-sqrt", "linear"]


def learning_rate(
    step: int,
    steps: int,
    warmup_steps: int,
    peak: float,
    minimum: float,
    decay: Decay = "cosine",
    decay_fraction: float = 0.2,
    decay_shape: DecayShape = "1-sqrt",
) -> float:
    """Learning rate of `step` (0-based) out of `steps`: linear warm-up, then half a cosine, a line, or
    the peak for most of the time and a fall at the end (warm-up, stable, decay).

        step < warm-up   peak · (step + 1) / warm-up
        cosine           minimum + (peak − minimum) · (1 + cos πt) / 2
        linear           minimum + (peak − minimum) · (1 − t)
                         with t = (step − warm-up) / (steps − warm-up)
        wsd, 1-sqrt      minimum + (peak − minimum) · (1 − √t)
        wsd, linear      minimum + (peak − minimum) · (1 − t)
                         with t = max(0, step − first) / (steps − first)
                         and first = steps − round(decay_fraction · steps)

    The last step (t just below 1) still moves; `minimum` itself is reached at step = steps. A line to zero
    is what Bergsma et al. (2025, arXiv:2502.15938) find best. With wsd the rate before the fall does not
    depend on `steps`, so a run can be made longer without having been too slow before; 1-sqrt is the shape
    that Hägele et al. (2024, arXiv:2405.18392) find best.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    falling = round(decay_fraction * steps) if decay == "wsd" else steps
    first = max(warmup_steps, steps - falling)
    progress = min(1.0, max(0, step - first) / max(1, steps - first))
    if decay == "cosine":
        left = (1 + math.cos(math.pi * progress)) / 2
    elif decay == "wsd" and decay_shape == "1-sqrt":
        left = 1 - math.sqrt(progress)
    else:
        left = 1 - progress
    return minimum + (peak - minimum) * left
