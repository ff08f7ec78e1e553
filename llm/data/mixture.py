"""Which source each sample of a mixed stream comes from, in closed form.

A stage of the mixture gives every source j an integer weight w_j; with W = Σ w_j, the exact share of source j
in the first n samples of the stage is n w_j / W. At every n, the number x_j(n) of samples it has given stays
within one sample of that, for any number m of sources (Tijdeman 1980, "The chairman assignment problem"):

    |x_j(n) − n w_j / W| ≤ 1 − 1 / (2m − 2)

After W samples all x_j are exact, so a table of W entries tells the whole stage. A stage begins where a whole
period of the stage before it ends; thus the bound holds over all stages together.
"""

import heapq
from collections.abc import Sequence
from itertools import pairwise
from math import gcd

import numpy as np

LONGEST_PERIOD = 10_000
"""Samples after which a stage's pattern repeats: weights of four digits."""


def reduced(weights: Sequence[int]) -> tuple[int, ...]:
    """The smallest integers in the same proportion."""
    divisor = gcd(*weights)
    return tuple(weight // divisor for weight in weights)


class Mixture:
    """A schedule of weights over sources 0 … m − 1, and where it takes each sample from."""

    def __init__(self, stages: Sequence[tuple[int, Sequence[int]]]):
        """stages: (samples that are to go before it, weights ≥ 0 of all sources), the first after 0 samples.

        A stage waits for the end of a period of the one before, and lasts one period at least.

        Raises ValueError if stages are not in order, weights are not as many in each stage or all 0, or a
        period is longer than `LONGEST_PERIOD`.
        """
        begins = [after for after, _ in stages]
        if not begins or begins[0] != 0 or any(a >= b for a, b in pairwise(begins)):
            raise ValueError(
                f"stages of a mixture begin with sample 0 and then ever later, not with {begins}"
            )
        starts: list[int] = [0]
        tables: list[np.ndarray] = []
        ranks: list[np.ndarray] = []
        for number, (after, weights) in enumerate(stages):
            if len(weights) != len(stages[0][1]) or min(weights) < 0 or max(weights) == 0:
                raise ValueError(f"stage {number + 1} of the mixture has the weights {list(weights)}")
            table, rank = period(reduced(weights))
            if number:
                periods = -(-max(1, after - starts[-1]) // len(tables[-1]))
                starts.append(starts[-1] + periods * len(tables[-1]))
            tables.append(table)
            ranks.append(rank)
        self.starts = np.array(starts, dtype=np.int64)
        """(stages,): the sample with which each begins."""
        self._weights = np.array([reduced(weights) for _, weights in stages], dtype=np.int64)
        self._periods = np.array([len(table) for table in tables], dtype=np.int64)
        self._table_start = np.cumsum([0, *self._periods[:-1]])
        self._table, self._rank = np.concatenate(tables), np.concatenate(ranks)
        whole = np.diff(self.starts) // self._periods[:-1]
        self._before = np.cumsum([0 * self._weights[0], *(whole[:, None] * self._weights[:-1])], axis=0)

    def text(self) -> str:
        """Its stages in one line, `0: 7 3 0; 4000: 5 3 2`: the sample with which each begins, and weights."""
        stages = zip(self.starts.tolist(), self._weights.tolist(), strict=True)
        return "; ".join(f"{start}: {' '.join(map(str, weights))}" for start, weights in stages)

    @property
    def sources(self) -> int:
        return self._weights.shape[1]

    def locate(self, i: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, how many samples of that source went before) of sample i ≥ 0: int64, of the shape of i."""
        i = np.asarray(i, dtype=np.int64)
        stage = np.searchsorted(self.starts, i, side="right") - 1
        periods, place = np.divmod(i - self.starts[stage], self._periods[stage])
        entry = self._table_start[stage] + place
        source = self._table[entry]
        nth = self._before[stage, source] + periods * self._weights[stage, source] + self._rank[entry]
        return source, nth

    def counts(self, samples: int) -> np.ndarray:
        """(sources,) int64: samples of each source among the first `samples`."""
        stage = int(np.searchsorted(self.starts, samples, side="right")) - 1
        periods, place = divmod(samples - int(self.starts[stage]), int(self._periods[stage]))
        first = int(self._table_start[stage])
        rest = np.bincount(self._table[first : first + place], minlength=self.sources)
        counts: np.ndarray = self._before[stage] + periods * self._weights[stage] + rest
        return counts


def period(weights: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """One period of W = Σ weights samples: the source of each, and how many of that source went before it.

    The k-th sample of source j (k = 1, 2, …) may be taken from step R on and must be by step D, or the bound
    is broken; of those that may be taken, the one that must be first is (Tijdeman 1980). With d = 2m − 2,

        R = ⌈((k − 1) d + 1) W / (d w_j)⌉        D = ⌊(k d − 1) W / (d w_j)⌋ + 1

    Returns two (W,) int64 arrays. Raises ValueError if W is more than `LONGEST_PERIOD`.
    """
    total = sum(weights)
    if total > LONGEST_PERIOD:
        raise ValueError(
            f"the weights {list(weights)} repeat only after {total} samples, more than {LONGEST_PERIOD}: "
            "round them"
        )
    d = max(1, 2 * sum(weight > 0 for weight in weights) - 2)
    waiting = [
        (
            -(-((k - 1) * d + 1) * total // (d * weight)),
            (k * d - 1) * total // (d * weight) + 1,
            source,
            k - 1,
        )
        for source, weight in enumerate(weights)
        for k in range(1, weight + 1)
    ]
    waiting.sort(reverse=True)
    ready: list[tuple[int, int, int]] = []
    table, rank = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    for step in range(1, total + 1):
        while waiting and waiting[-1][0] <= step:
            heapq.heappush(ready, waiting.pop()[1:])
        _, table[step - 1], rank[step - 1] = heapq.heappop(ready)
    return table, rank
