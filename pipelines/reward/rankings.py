"""Rankings as batches for training, each a pure function of the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster.errors import UserError
from llm.tokenizer.special import PAD_ID
from llm.training.loss import IGNORE
from llm.training.step import MicroBatch


@dataclass(frozen=True)
class Ranking:
    """The responses to one prompt, each with the prompt before it, and their ranks (1 is best)."""

    sequences: list[list[int]]
    ranks: list[int]

    @property
    def longest(self) -> int:
        return max(map(len, self.sequences))


FILLER = Ranking([[PAD_ID]], [IGNORE])
"""A ranking that counts for nothing."""


def read_rankings(preferences: Path, split: str, max_seq_len: int) -> list[Ranking]:
    """Rankings of a split in the table's order; responses that do not fit are left out of theirs.

    Rankings without two responses of different rank teach nothing but are kept: ties pull scores together.

    Raises:
        UserError: there is none.
    """
    table = pq.read_table(
        preferences / "preferences.parquet", columns=["prompt_ids", "responses", "ranks", "split"]
    )
    rankings = []
    for row in table.filter(pc.equal(table["split"], split)).to_pylist():
        fitting = [
            (row["prompt_ids"] + response["token_ids"], rank)
            for response, rank in zip(row["responses"], row["ranks"], strict=True)
            if len(row["prompt_ids"]) + len(response["token_ids"]) <= max_seq_len
        ]
        if len(fitting) > 1:
            rankings.append(Ranking([sequence for sequence, _ in fitting], [rank for _, rank in fitting]))
    if not rankings:
        raise UserError(
            f"{preferences} has no {split} ranking of two responses that fit the model; make more"
        )
    return rankings


def chosen(rankings: Sequence[Ranking], first: int, count: int, seed: int) -> list[Ranking]:
    """Rankings `first` … `first + count − 1` of the endless stream of epochs, each in an order of its own."""
    size = len(rankings)
    epochs = range(first // size, (first + count - 1) // size + 1)
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(size) for epoch in epochs}
    return [rankings[orders[index // size][index % size]] for index in range(first, first + count)]


def padded(rankings: Sequence[Ranking], micro_batch: int) -> list[MicroBatch]:
    """(tokens (rankings · K, seq), ranks (rankings, K)) for each `micro_batch` rankings, sorted by length.

    A ranking of fewer than K responses is filled up with empty ones, whose rank is `IGNORE`.
    """
    ordered = sorted(rankings, key=lambda ranking: ranking.longest, reverse=True)
    return [_pad(ordered[start : start + micro_batch]) for start in range(0, len(ordered), micro_batch)]


def lengths_of(tokens: Tensor) -> Tensor:
    """(sequences,): tokens up to the last that is not padding; 1 for an empty sequence."""
    place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return (place * (tokens != PAD_ID)).amax(1).clamp_min(1)


def _pad(rankings: Sequence[Ranking]) -> MicroBatch:
    most = max(len(ranking.ranks) for ranking in rankings)
    tokens = torch.full((len(rankings), most, max(r.longest for r in rankings)), PAD_ID, dtype=torch.int64)
    ranks = torch.full((len(rankings), most), IGNORE, dtype=torch.int64)
    for row, ranking in enumerate(rankings):
        ranks[row, : len(ranking.ranks)] = torch.tensor(ranking.ranks)
        for place, sequence in enumerate(ranking.sequences):
            tokens[row, place, : len(sequence)] = torch.tensor(sequence)
    return tokens.flatten(0, 1), ranks
