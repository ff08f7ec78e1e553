"""Right-padded batches of (ids, loss_mask) for fine-tuning, each a pure function of its step.

Each epoch is shuffled under (seed, epoch), cut into pools of `POOL_BATCHES` batches, each pool sorted by
length, cut into batches, and the batches shuffled: little padding, and no drift from short to long. Examples
that do not fill the last batch of an epoch wait for the next one, where the shuffle picks others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llm.data.permutation import keyed, shuffled

POOL_BATCHES = 16


def trainable(
    examples: Iterable[tuple[Sequence[int], Sequence[int]]], max_seq_len: int
) -> tuple[list[np.ndarray], list[np.ndarray], int, int]:
    """ids (int32) and loss mask (bool) of examples that fit and have a loss; how many are too long, and how
    many of the others have none.
    """
    ids: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    too_long = unanswered = 0
    for tokens, loss_mask in examples:
        if len(tokens) > max_seq_len:
            too_long += 1
        elif any(loss_mask):
            ids.append(np.asarray(tokens, dtype=np.int32))
            masks.append(np.asarray(loss_mask, dtype=bool))
        else:
            unanswered += 1
    return ids, masks, too_long, unanswered


@dataclass(frozen=True)
class PaddedBatch:
    """ids, loss_mask: (rows, length) int64 and bool; loss_mask is False on padding."""

    ids: np.ndarray
    loss_mask: np.ndarray


class ConversationBatches:
    """Batches of examples such as `llm.tokenizer.chat.encode_conversation` gives.

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

        Raises ValueError if fewer than `batch_size` are left.
        """
        ids, masks, self.too_long, self.unanswered = trainable(examples, max_seq_len)
        if len(ids) < batch_size:
            raise ValueError(
                f"{len(ids)} conversations of at most {max_seq_len} tokens do not fill one batch of "
                f"{batch_size} ({self.too_long} are longer); lower the batch size or raise the length"
            )
        self.batch_size, self.seed, self.pad_id = batch_size, seed, pad_id
        self.batches_per_epoch = len(ids) // batch_size
        self._ids, self._masks = ids, masks
        self._lengths = np.array([len(tokens) for tokens in ids])
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Examples that take part."""
        return len(self._ids)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> PaddedBatch:
        """The rows of this rank of batch `step` ≥ 0, padded to the longest row of all ranks.

        Where ranks have unequal parts, a row of padding makes them equally long.
        """
        epoch, index = divmod(step, self.batches_per_epoch)
        rows = self._epoch_order(epoch)[index]
        length = int(self._lengths[rows].max())
        rows = rows[rank::world_size]  # strided, for rows are sorted by length: equal work for each rank
        ids = np.full((-(-self.batch_size // world_size), length), self.pad_id, dtype=np.int64)
        loss_mask = np.zeros(ids.shape, dtype=bool)
        for i, row in enumerate(rows):
            ids[i, : self._lengths[row]] = self._ids[row]
            loss_mask[i, : self._lengths[row]] = self._masks[row]
        return PaddedBatch(ids, loss_mask)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = bucketed_order(self._lengths, self.batch_size, self.seed, epoch)
        return self._order


def bucketed_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """(batches, batch_size): which examples, of these lengths, each batch of an epoch holds."""
    batches = len(lengths) // batch_size
    order = shuffled(len(lengths), keyed(seed, epoch, "examples"))[: batches * batch_size]
    pool = POOL_BATCHES * batch_size
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        order[start : start + pool] = part[np.argsort(lengths[part], kind="stable")]
    return order.reshape(batches, batch_size)[shuffled(batches, keyed(seed, epoch, "batches"))]
