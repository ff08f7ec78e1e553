"""Batches of pairs for encoder-decoders: what is read and what is to be written.

    pair      source <eos>                 target <eos>
    inputs    source <eos>                 the encoder reads it
    tokens    <pad> target                 the decoder is given it
    targets   target <eos>                 and predicts this

A row holds one pair, or, packed, several, one after the other on either side: the mask by which a pair sees
itself alone is the model's affair (`llm.models.documents`). Padding follows: <pad> in inputs, <eos> in
tokens, where <pad> would open another pair, `IGNORE` in targets.

The order of the epochs is that of `packing.py` (one a row) and `best_fit.py` (packed), where both lengths
count: the largest first, a pair goes to the row that still takes both of its sides and has the least room
left on the two of them together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llm.data.best_fit import packed_rows
from llm.data.packing import bucketed_order

IGNORE = -100
"""Target of a position that predicts nothing."""

Pair = tuple[Sequence[int], Sequence[int]]
"""What is read and what is written, each with its <eos>."""


@dataclass(frozen=True)
class PairRows:
    """inputs (rows, keys), tokens and targets (rows, seq), int64."""

    inputs: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray


def lay_out(
    rows: Sequence[Sequence[Pair]], pad_id: int, eos_id: int, lengths: tuple[int, int] | None = None
) -> PairRows:
    """The pairs of each row side by side, padded to `lengths`, by default those of the longest row.

    A row without a pair is read and learned from by nobody: it holds an empty one, without a target.
    """
    if lengths is None:
        sides = ([sum(len(pair[side]) for pair in row) for row in rows] for side in (0, 1))
        longest_input, longest_target = (max(1, *side) for side in sides)
        lengths = longest_input, longest_target
    inputs = np.full((len(rows), lengths[0]), pad_id, dtype=np.int64)
    tokens = np.full((len(rows), lengths[1]), eos_id, dtype=np.int64)
    targets = np.full(tokens.shape, IGNORE, dtype=np.int64)
    for number, row in enumerate(rows):
        if not row:
            inputs[number, 0], tokens[number, 0] = eos_id, pad_id
        read = written = 0
        for source, target in row:
            inputs[number, read : read + len(source)] = source
            end = written + len(target)
            tokens[number, written], tokens[number, written + 1 : end] = pad_id, target[:-1]
            targets[number, written:end] = target
            read, written = read + len(source), end
    return PairRows(inputs, tokens, targets)


class PairBatches:
    """Batches of `batch_size` rows. The state of a run is its step alone: `batch(step)` needs nothing that
    went before.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        *,
        batch_size: int,
        max_input_len: int,
        max_target_len: int,
        packing: bool,
        seed: int,
        pad_id: int,
        eos_id: int,
    ):
        """Leaves out pairs of which a side is too long (counted in `too_long`) and those without a target
        (`unanswered`).

        Raises ValueError if the others do not fill one batch.
        """
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.too_long = self.unanswered = 0
        for source, target in pairs:
            if not len(target):
                self.unanswered += 1
            elif len(source) > max_input_len or len(target) > max_target_len:
                self.too_long += 1
            else:
                self._pairs.append((np.asarray(source, np.int32), np.asarray(target, np.int32)))
        sides = [(len(source), len(target)) for source, target in self._pairs]
        self._lengths = np.array(sides, dtype=np.int64).reshape(-1, 2)
        self.batch_size, self.seed, self.packing = batch_size, seed, packing
        self.capacity = np.array((max_input_len, max_target_len))
        self._pad_id, self._eos_id = pad_id, eos_id
        self._epoch, self._rows = 0, self._epoch_rows(0)
        self.batches_per_epoch = len(self._rows) // batch_size
        if self.batches_per_epoch == 0:
            packed = f" pack into {len(self._rows)} rows, which" if packing else ""
            raise ValueError(
                f"{len(self)} pairs of at most {max_input_len} tokens to read and {max_target_len} to write"
                f"{packed} do not fill one batch of {batch_size} ({self.too_long} are longer); lower the "
                "batch size, raise the lengths or give more pairs"
            )

    def __len__(self) -> int:
        """Pairs that take part."""
        return len(self._pairs)

    @property
    def mean_lengths(self) -> tuple[float, float]:
        """Tokens to read and to write of a pair."""
        read, written = self._lengths.mean(axis=0).tolist()
        return read, written

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> PairRows:
        """The rows of this rank of batch `step` ≥ 0.

        Packed rows have the greatest lengths, others those of the longest of all ranks. Where ranks have
        unequal parts, a row without a pair makes them equal.
        """
        epoch, index = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            rows = self._epoch_rows(epoch, self.batches_per_epoch * self.batch_size)
            self._epoch, self._rows = epoch, rows
        whole = self._rows[index * self.batch_size : (index + 1) * self.batch_size]
        longest = self.capacity if self.packing else self._lengths[np.concatenate(whole)].max(axis=0)
        mine = [[self._pairs[pair] for pair in members] for members in whole[rank::world_size]]
        mine += [[]] * (-(-self.batch_size // world_size) - len(mine))
        return lay_out(mine, self._pad_id, self._eos_id, (int(longest[0]), int(longest[1])))

    def _epoch_rows(self, epoch: int, fewest_rows: int = 0) -> list[np.ndarray]:
        """The pairs of each row of the epoch, in the order of training."""
        if not self.packing:
            order = bucketed_order(self._lengths.sum(axis=1), self.batch_size, self.seed, epoch)
            return list(order.reshape(-1, 1))
        return packed_rows(
            lambda members: two_sided_best_fit(self._lengths[members], self.capacity),
            len(self),
            float((self._lengths.sum(axis=0) / self.capacity).max()),
            self.seed,
            epoch,
            fewest_rows,
        )


def two_sided_best_fit(lengths: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """(n,) int64: the row of each of n pairs; rows are numbered in the order in which they are opened.

    lengths (n, 2) from 1 to capacity (2,). A side counts by its share of the capacity: a pair is as large as
    the larger of its shares, and the room of a row is the sum of the two. Ties go to what comes first.
    """
    parts = lengths * capacity[::-1]  # shares of the capacity, times both capacities: whole numbers
    rooms = np.empty_like(parts)
    row_of = np.empty(len(parts), dtype=np.int64)
    opened = 0
    for pair in np.argsort(-parts.max(axis=1, initial=0), kind="stable"):
        fitting = np.flatnonzero((rooms[:opened] >= parts[pair]).all(axis=1))
        if len(fitting):
            row = fitting[rooms[fitting].sum(axis=1).argmin()]
        else:
            row, opened = opened, opened + 1
            rooms[row] = capacity.prod()
        rooms[row] -= parts[pair]
        row_of[pair] = row
    return row_of
