"""Conversations packed into rows of one length, without cutting any: best-fit decreasing.

Longest first, each goes to the row with the least room that still takes it, or else opens a row (Ding et al.
2024, "Fewer Truncations Improve Language Modeling", arXiv:2404.10830). Right-padding pays for the longest
conversation of a batch; here all of a row is conversation but the last few tokens.

Each epoch is shuffled under (seed, epoch), cut into pools of about `POOL_ROWS` rows, each pool packed, and
the rows of all pools shuffled. All packed at once, conversations would keep their company from epoch to
epoch, for it goes by their lengths alone. Seen with log-normal lengths of 100 to 900 tokens on average, in
rows of 2,048: pools of 64 rows are filled to 97.4 to 99.2 %, of 256 rows to 98.7 to 99.8 %, of 2,048 rows to
99.2 to 99.98 %. Sets that would have fewer than `FEWEST_POOLS` have so many smaller ones. Of the pairs that
share a row among 200 to 5,000 conversations, 5 to 17 % do so in the next epoch as well; with two pools 10 to
31 %, with one 22 to 94 %.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from llm.data.packing import PaddedBatch, trainable
from llm.data.permutation import keyed, shuffled

POOL_ROWS = 256
FEWEST_POOLS = 4


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """(n,) int64: the row of each of n items; rows are numbered in the order in which they are opened.

    lengths: (n,) whole numbers from 1 to `capacity`; ValueError if one is not. Of equal lengths the first
    comes first, and of rows with equal room the one opened first is taken. It takes O(log n) steps an item,
    and moves as many words as there are rows: for pools of some thousand items, not for millions.
    """
    n = len(lengths)
    unfit = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if unfit.size:
        raise ValueError(
            f"item {unfit[0]} is {lengths[unfit[0]]} long, rows take 1 to {capacity}: leave it out"
        )
    by_length = np.argsort(-lengths, kind="stable")
    opened = 0
    rows: list[int] = []
    rooms: list[int] = []  # room · n + row of each row so far, ascending
    for length in lengths[by_length].tolist():
        best = bisect_left(rooms, length * n)
        if best < len(rooms):
            room = rooms.pop(best)
        else:
            room = capacity * n + opened
            opened += 1
        rows.append(room % n)
        insort(rooms, room - length * n)
    row_of = np.empty(n, dtype=np.int64)
    row_of[by_length] = rows
    return row_of


class PackedConversationBatches:
    """As `llm.data.packing.ConversationBatches`, but a batch has `batch_size` rows, not conversations.

    The state of a run is its step alone: `batch(step)` needs nothing that went before.
    """

    def __init__(
        self,
        examples: Iterable[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_size: int,
        max_seq_len: int,
        seed: int,
        pad_id: int,
    ):
        """Leaves out examples longer than `max_seq_len` (counted in `too_long`) and those with no loss
        (`unanswered`).

        Raises ValueError if the others fill fewer than `batch_size` rows.
        """
        self._ids, self._masks, self.too_long, self.unanswered = trainable(examples, max_seq_len)
        self._lengths = np.array([len(tokens) for tokens in self._ids], dtype=np.int64)
        self.batch_size, self.max_seq_len, self.seed, self.pad_id = batch_size, max_seq_len, seed, pad_id
        self._epoch, self._rows = 0, self._pack(0)
        self.batches_per_epoch = len(self._rows) // batch_size
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"{len(self)} conversations of at most {max_seq_len} tokens pack into {len(self._rows)} "
                f"rows, which do not fill one batch of {batch_size} ({self.too_long} are longer); "
                f"lower the batch size or give more conversations"
            )

    def __len__(self) -> int:
        """Examples that take part."""
        return len(self._ids)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> PaddedBatch:
        """The rows of this rank of batch `step` ≥ 0, of `max_seq_len` tokens: conversations, then padding.

        The first token of each, which nothing comes before, has no loss. Where ranks have unequal parts, a
        row of padding makes them equal.
        """
        epoch, index = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._pack(epoch, self.batches_per_epoch * self.batch_size)
        rows = self._rows[index * self.batch_size : (index + 1) * self.batch_size][rank::world_size]
        shape = -(-self.batch_size // world_size), self.max_seq_len
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        loss_mask = np.zeros(shape, dtype=bool)
        for row, members in enumerate(rows):
            begin = 0
            for example in members:
                end = begin + len(self._ids[example])
                ids[row, begin:end] = self._ids[example]
                loss_mask[row, begin + 1 : end] = self._masks[example][1:]
                begin = end
        return PaddedBatch(ids, loss_mask)

    def _pack(self, epoch: int, fewest_rows: int = 0) -> list[np.ndarray]:
        """The examples of each row of the epoch, in the order of training.

        Rows beyond the last whole batch wait for the next epoch, where the shuffle picks others. Some epochs
        pack into a few rows fewer than the first: `fewest_rows` keeps their number of batches the same.
        """
        return packed_rows(
            lambda members: best_fit_decreasing(self._lengths[members], self.max_seq_len),
            len(self),
            self._lengths.sum() / self.max_seq_len,
            self.seed,
            epoch,
            fewest_rows,
        )


def packed_rows(
    pack: Callable[[np.ndarray], np.ndarray],
    n: int,
    full_rows: float,
    seed: int,
    epoch: int,
    fewest_rows: int,
) -> list[np.ndarray]:
    """The examples of each row of an epoch, in the order of training, as the top of this file says.

    Args:
        pack: numbers of examples -> the row of each, of rows 0, 1, …, none of which is empty.
        full_rows: rows that all `n` would take if none had any room left.
        fewest_rows: rows to spread them over if `pack` makes do with less.
    """
    order = shuffled(n, keyed(seed, epoch, "examples"))
    pools = max(FEWEST_POOLS, round(full_rows / POOL_ROWS))
    row_of = np.empty_like(order)
    rows = 0
    for pool in np.array_split(np.arange(n), pools):
        row_of[pool] = rows + pack(order[pool])
        rows = row_of[pool].max(initial=rows - 1) + 1
    if rows < fewest_rows:
        _open_rows(row_of, rows, fewest_rows)
        rows = fewest_rows
    place = shuffled(rows, keyed(seed, epoch, "rows"))[row_of]
    ends = np.cumsum(np.bincount(place, minlength=rows))
    return np.split(order[np.argsort(place, kind="stable")], ends)[:-1]


def _open_rows(row_of: np.ndarray, rows: int, wanted: int) -> None:
    """Give the first items that share a row with one before them a row to themselves, up to `wanted` rows."""
    firsts = np.unique(row_of, return_index=True)[1]
    sharing = np.delete(np.arange(len(row_of)), firsts)
    row_of[sharing[: wanted - rows]] = np.arange(rows, wanted)
