"""The order of a stream that is mixed from several sources: which source, then where in it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm.data.mixture import Mixture
from llm.data.order import Order


class MixedOrder:
    """Where sample i of the mixed stream lies among the sources' shards, one source's after the other's.

    Each source is gone through in an order of its own, epoch after epoch, as fast as its weights say.
    """

    def __init__(self, orders: Sequence[Order], shards: Sequence[int], mixture: Mixture):
        """orders, shards: of each source, its order and how many shards it has; `mixture` is over them."""
        self.orders, self.mixture = orders, mixture
        self.seq_len, self.seed = orders[0].seq_len, orders[0].seed
        self._first_shard = np.cumsum([0, *shards[:-1]])

    def locate(self, i: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, token offset) of global sample i ≥ 0: int64 arrays of the shape of i."""
        source, nth = self.mixture.locate(i)
        shard, offset = np.empty_like(nth), np.empty_like(nth)
        for number in np.unique(source):
            here = source == number
            shard[here], offset[here] = self.orders[number].locate(nth[here])
        return shard + self._first_shard[source], offset

    def epochs(self, samples: int) -> list[float]:
        """How often the first `samples` go through each source."""
        counts = self.mixture.counts(samples)
        return [
            int(count) / order.samples_per_epoch for count, order in zip(counts, self.orders, strict=True)
        ]

    def facts(self) -> dict[str, Any]:
        """What tells two orders of the same shards apart, apart from the seed."""
        return self.orders[0].facts() | {"mixture": self.mixture.text()}
