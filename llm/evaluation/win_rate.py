"""Shares with intervals.

- `proportion`: a share and its Wilson interval (Wilson 1927, JASA 22:209)
- `win_rate`: how often one model's answer beats the other's on the same prompt
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Proportion:
    """A share of `n` trials with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class WinRate(Proportion):
    """A `Proportion` of paired comparisons in which a tie is half a win."""

    wins: int
    ties: int
    losses: int


def wilson_interval(successes: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """(low, high) of the share `successes`/`n`; `z` is the normal quantile, by default of 95 %.

        (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n)

    Unlike p ± z·√(p(1−p)/n) it stays inside [0, 1] and holds its level for small n and extreme shares.
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def proportion(successes: int, n: int) -> Proportion:
    """`successes` of `n` trials with the Wilson interval; 0 of 0 is 0 within [0, 1]."""
    low, high = wilson_interval(successes, n)
    return Proportion(successes / n if n else 0.0, low, high, n)


def win_rate(scores: Sequence[float], baseline_scores: Sequence[float]) -> WinRate:
    """How often `scores[i]` beats `baseline_scores[i]`, the two answers to prompt i; ties count ½.

    A tie varies less than a coin toss, so with ties the Wilson interval is on the safe, wide side. Raises
    ValueError when the two are not of one length.
    """
    pairs = list(zip(scores, baseline_scores, strict=True))
    wins = sum(ours > theirs for ours, theirs in pairs)
    losses = sum(ours < theirs for ours, theirs in pairs)
    ties = len(pairs) - wins - losses
    low, high = wilson_interval(wins + ties / 2, len(pairs))
    value = (wins + ties / 2) / len(pairs) if pairs else 0.5
    return WinRate(value, low, high, len(pairs), wins, ties, losses)
