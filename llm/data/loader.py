"""Batches of the global token stream, and a state of three entries from which it goes on exactly.

Guarantees:
  - `batch(start, count)` is a pure function of the shards, the order's parameters, `start` and `count`.
  - Ranks of any world size cut the same global batch: joined in rank order, their rows are that batch.
  - `samples_consumed` counts what training has taken, not what was read ahead; resuming any number of times
    yields the stream that an uninterrupted run would have yielded.
Forbids: going on with other data or another order than the state was made with.
"""

from typing import Any

import numpy as np

from llm.data.order import Order
from llm.data.shards import TokenShards


class TokenLoader:
    """Reads samples of `order` from `shards`."""

    def __init__(self, shards: TokenShards, order: Order):
        self.shards, self.order = shards, order
        self.samples_consumed = 0

    def batch(self, start: int, count: int) -> np.ndarray:
        """(count, seq_len) int64: global samples start … start + count - 1."""
        shard, offset = self.order.locate(np.arange(start, start + count, dtype=np.int64))
        rows = np.empty((count, self.order.seq_len), dtype=np.int64)
        for row, (k, at) in enumerate(zip(shard.tolist(), offset.tolist(), strict=True)):
            rows[row] = self.shards.read(k, at, self.order.seq_len)
        return rows

    def rank_batch(self, global_batch: int, rank: int, world_size: int) -> np.ndarray:
        """This rank's rows of the next global batch: (global_batch // world_size, seq_len) int64.

        Cut them into micro-batches as memory asks; then `advance(global_batch)` on every rank.
        """
        rows, remainder = divmod(global_batch, world_size)
        if remainder:
            raise ValueError(
                f"a global batch of {global_batch} samples does not divide by {world_size} ranks"
            )
        return self.batch(self.samples_consumed + rank * rows, rows)

    def advance(self, samples: int) -> None:
        """Count `samples` as consumed, once the optimizer has taken its step on them."""
        self.samples_consumed += samples

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain JSON types."""
        return {
            "fingerprint": self._fingerprint(),
            "seed": self.order.seed,
            "samples_consumed": self.samples_consumed,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises ValueError, naming the difference, if the data is another."""
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
        self.samples_consumed = state["samples_consumed"]

    def _fingerprint(self) -> dict[str, Any]:
        """Small facts beside the hash, so that a refusal can say what changed."""
        return {
            "content": self.shards.fingerprint,
            "shards": len(self.shards.shards),
            "tokens": self.shards.tokens,
            "seq_len": self.order.seq_len,
            "block_samples": self.order.block_samples,
            "window_blocks": self.order.window_blocks,
        }
