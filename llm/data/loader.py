"""Batches of the global token stream, and the state by which a checkpoint knows which stream it is of.

Guarantees:
  - `batch(start, count)` is a pure function of the shards, the order's parameters, `start` and `count`. So
    ranks of any number that read neighbouring parts read the same global batch, and nothing but the number of
    samples taken says where a stream goes on.
Forbids: going on with other data or another order than the state was made with.
"""

from typing import Any

import numpy as np

from llm.data.mixed_order import MixedOrder
from llm.data.order import Order
from llm.data.shards import TokenShards

_LOCATED_AT_ONCE = 2048


class TokenLoader:
    """Reads samples of `order` from `shards`."""

    def __init__(self, shards: TokenShards, order: Order | MixedOrder):
        self.shards, self.order = shards, order
        self._located = range(0)
        self._places: list[tuple[int, int]] = []

    def batch(self, start: int, count: int) -> np.ndarray:
        """(count, seq_len) int64: global samples start … start + count - 1."""
        seq_len = self.order.seq_len
        rows = np.empty((count, seq_len), dtype=np.int64)
        for row, (shard, offset) in zip(rows, self._locate(start, count), strict=True):
            row[:] = self.shards.read(shard, offset, seq_len)
        return rows

    def expect(self, start: int, count: int) -> None:
        """These samples are wanted next: where they come over a network they are sent for now."""
        self.shards.expect(self._locate(start, count), self.order.seq_len)

    def _locate(self, start: int, count: int) -> list[tuple[int, int]]:
        """(shard, offset) of samples. Those that come after are located as well: it costs little more."""
        if start < self._located.start or start + count > self._located.stop:
            self._located = range(start, start + max(count, _LOCATED_AT_ONCE))
            shard, offset = self.order.locate(np.arange(start, self._located.stop, dtype=np.int64))
            self._places = list(zip(shard.tolist(), offset.tolist(), strict=True))
        first = start - self._located.start
        return self._places[first : first + count]

    def state(self, samples_consumed: int) -> dict[str, Any]:
        """What a checkpoint keeps once training has taken so many samples: plain JSON types."""
        return {
            "fingerprint": self._fingerprint(),
            "seed": self.order.seed,
            "samples_consumed": samples_consumed,
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError, naming the difference, if `state` is of another stream than this one."""
        saved = {**state["fingerprint"], "seed": state["seed"]}
        current = {**self._fingerprint(), "seed": self.order.seed}
        changed = [
            f"{name} {saved.get(name)} → {current.get(name)}"
            for name in sorted(saved.keys() | current.keys())
            if saved.get(name) != current.get(name)
        ]
        if changed:
            raise ValueError(
                f"the checkpoint's token stream cannot go on with this data: {'; '.join(changed)}; "
                f"resume with the tokens, seq_len and seed it was trained with"
            )

    def _fingerprint(self) -> dict[str, Any]:
        """Small facts beside the hash, so that a refusal can say what changed."""
        return {
            "content": self.shards.fingerprint,
            "shards": len(self.shards),
            "tokens": self.shards.tokens,
            **self.order.facts(),
        }
