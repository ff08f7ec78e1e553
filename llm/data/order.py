"""The training order as a pure function: (seed, epoch, i) → (shard, offset), in closed form.

Shard k holds tokens_k // seq_len samples, numbered through all shards from 0 to N-1. Each epoch visits every
sample once:

    1. The samples are cut into blocks of `block_samples` neighbours; a keyed permutation orders the blocks.
    2. The blocks in that order are cut into windows of `window_blocks`; a keyed permutation of its own orders
       the samples within each window.

So reads stay within `window_blocks` contiguous runs at a time, whatever the size of the corpus. Memory is
O(shards); a seek is O(log shards); nothing is materialised. Numbers are 64-bit throughout.

The last block may be short. It stands wherever the permutation puts it, and what comes after it moves up:
with p its place, B the block size and r its length, the dense position i lies in the slot

    slot(i) = i            if i < p B + r
              i + B - r    otherwise
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm.data.permutation import GOLDEN, keyed, mix, permute

_U64 = np.uint64
_KEPT_EPOCHS = 64


class Order:
    """Where sample i of the endless global stream lies; epoch = i // samples_per_epoch."""

    def __init__(
        self,
        shard_tokens: Sequence[int] | np.ndarray,
        seq_len: int,
        seed: int,
        block_samples: int = 64,
        window_blocks: int = 1024,
        source: str = "",
    ):
        """`shard_tokens` as `TokenShards` gives it.

        source: whose samples these are, if others are mixed with them under the same seed.

        Raises ValueError if no shard holds `seq_len` tokens.
        """
        self.seq_len, self.seed = seq_len, seed
        self.block_samples, self.window_blocks = block_samples, window_blocks
        tokens = np.asarray(shard_tokens, dtype=np.int64)
        self._first_sample = np.concatenate([[0], np.cumsum(tokens // seq_len)])
        self.samples_per_epoch = int(self._first_sample[-1])
        if self.samples_per_epoch == 0:
            longest = tokens.max(initial=0)
            raise ValueError(
                f"no sample of {seq_len} tokens: the longest of {len(tokens)} shards has {longest}; "
                f"lower seq_len or give more text"
            )
        self._blocks = -(-self.samples_per_epoch // block_samples)
        self._last_block_samples = self.samples_per_epoch - (self._blocks - 1) * block_samples
        self._key_parts = (seed, source) if source else (seed,)
        self._epochs: dict[int, tuple[int, int, int]] = {}

    def epochs(self, samples: int) -> list[float]:
        """How often the first `samples` go through the shards: one number, for there is one source."""
        return [samples / self.samples_per_epoch]

    def facts(self) -> dict[str, Any]:
        """What tells two orders of the same shards apart, apart from the seed."""
        return {
            "seq_len": self.seq_len,
            "block_samples": self.block_samples,
            "window_blocks": self.window_blocks,
        }

    def locate(self, i: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, token offset) of global sample i ≥ 0: int64 arrays of the shape of i."""
        i = np.asarray(i, dtype=np.int64)
        flat = i.reshape(-1)
        epochs = flat // self.samples_per_epoch
        samples = np.empty_like(flat)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = self._sample_in_epoch(int(epoch), flat[here] % self.samples_per_epoch)
        shard = np.searchsorted(self._first_sample, samples, side="right") - 1
        offset = (samples - self._first_sample[shard]) * self.seq_len
        return shard.reshape(i.shape), offset.reshape(i.shape)

    def _sample_in_epoch(self, epoch: int, i: np.ndarray) -> np.ndarray:
        """Number of the sample at dense position i of the epoch; both int64 (positions,)."""
        block_size, last = self.block_samples, self._last_block_samples
        block_key, windows_key, short = self._of_epoch(epoch)
        short_end = short * block_size + last
        gap = block_size - last  # what the short block lacks

        def slot(position: np.ndarray) -> np.ndarray:
            return np.where(position < short_end, position, position + gap)

        def dense(slot: np.ndarray) -> np.ndarray:
            """Inverse of `slot` at the edges of windows, none of which lies inside a block."""
            return np.minimum(np.where(slot > short * block_size, slot - gap, slot), self.samples_per_epoch)

        window_slots = self.window_blocks * block_size
        window = slot(i) // window_slots
        start, end = dense(window * window_slots), dense((window + 1) * window_slots)
        window_key = mix(_U64(windows_key) + window.astype(_U64) * _U64(GOLDEN))
        within = permute((i - start).astype(_U64), (end - start).astype(_U64), window_key)

        shuffled = slot(start + within.astype(np.int64))
        block = self._permute_blocks(shuffled // block_size, block_key)
        return block * block_size + shuffled % block_size

    def _of_epoch(self, epoch: int) -> tuple[int, int, int]:
        """The keys of its blocks and windows, and the place of the last block, which may be short."""
        if epoch not in self._epochs:
            block_key, windows_key = (
                keyed(*self._key_parts, epoch, purpose) for purpose in ("blocks", "windows")
            )
            last = self._permute_blocks(np.array([self._blocks - 1]), block_key, inverse=True)
            if len(self._epochs) == _KEPT_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = block_key, windows_key, int(last[0])
        return self._epochs[epoch]

    def _permute_blocks(self, blocks: np.ndarray, key: int, inverse: bool = False) -> np.ndarray:
        n, keys = np.full(blocks.shape, self._blocks, _U64), np.full(blocks.shape, key, _U64)
        return permute(blocks.astype(_U64), n, keys, inverse).astype(np.int64)
