"""How well a model guesses what it is not shown of held-out text: an encoder-decoder the missing spans, an
encoder the masked tokens.

    loss     = Σ_predicted −log p(token | what is shown) / predicted tokens
    accuracy = predicted tokens that have the highest p / predicted tokens

Held-out text is cut into windows of one length, those of a shard one after the other; what is left over at
its end is not looked at. A window's number says which of its tokens are hidden, so every evaluation, of any
model with the same tokenizer and objective, asks for the same ones. There are no bits per byte: the
likelihood of a text is no product of such guesses.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llm.data.shards import TokenShards
from llm.models.encoder_decoder import EncoderDecoder
from llm.models.masked_lm import MaskedLM

IGNORE = -100
_ROWS_AT_A_TIME = 1024  # Positions whose logits exist at once.

VIEWS_SEED = 0
"""Of holes and masks in held-out text: the same for runs of any seed, whose losses are so of one question."""

Views = Callable[[np.ndarray, int], tuple[Tensor, ...]]
"""(rows (windows, length) int64, number of the first) -> what the model's `forward` takes, and last the
targets, which are `IGNORE` where nothing is predicted.
"""


@dataclass(frozen=True)
class Guesses:
    """What came of a number of guesses; those of several splits can be added."""

    predicted: int
    """Tokens,"""
    nats: float
    """the sum of their −log p,"""
    right: int
    """and how many of them the model thought the likeliest."""

    def __add__(self, other: "Guesses") -> "Guesses":
        return Guesses(self.predicted + other.predicted, self.nats + other.nats, self.right + other.right)

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return self.nats / self.predicted

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return self.right / self.predicted


def window_count(shards: TokenShards, length: int) -> int:
    """Windows of `length` tokens in all shards."""
    return int((shards.shard_tokens // length).sum())


def guesses(
    model: EncoderDecoder | MaskedLM,
    shards: TokenShards,
    length: int,
    views: Views,
    batch_size: int,
    limit: int | None = None,
    share: tuple[int, int] | None = None,
) -> Guesses:
    """What `model` makes of a held-out split that has a window. Every rank calls it and gets the same answer.

    Args:
        length: tokens of a window.
        views: the objective that the model was trained with, under a seed of the evaluation's own.
        batch_size: windows in one forward pass.
        limit: so many windows, evenly spaced, stand for all.
        share: (which, of how many) parts of the windows this rank scores, where others score the same part;
            by default each rank has its own.
    """
    first_window = np.concatenate([[0], np.cumsum(shards.shard_tokens // length)])
    every = int(first_window[-1])
    count = every if limit is None else min(limit, every)
    alone = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    rank, parts = share or alone
    passes = math.ceil(count / (parts * batch_size))  # Equal on all ranks: FSDP gathers in every one.
    mine = [index * every // count for index in range(count)][rank::parts]
    device = next(model.parameters()).device
    total = torch.zeros(3, dtype=torch.float64, device=device)
    for start in range(0, passes * batch_size, batch_size):
        *given, targets = _batch(shards, first_window, length, views, mine[start : start + batch_size])
        total += _score(model, [each.to(device) for each in given], targets.to(device))
    if alone[1] > 1:
        dist.all_reduce(total)
        total /= alone[1] // parts  # as often as each part was counted
    predicted, nats, right = total.tolist()
    return Guesses(int(predicted), nats, int(right))


def _batch(
    shards: TokenShards, first_window: np.ndarray, length: int, views: Views, chosen: Sequence[int]
) -> list[Tensor]:
    """The views of some windows; a rank that has run out of them gets one with nothing to predict."""
    rows = []
    for number in chosen or [0]:
        shard = int(np.searchsorted(first_window, number, side="right")) - 1
        offset = (number - int(first_window[shard])) * length
        row = shards.read(shard, offset, length).astype(np.int64)
        rows.append(views(row[None], number))
    *given, targets = map(torch.cat, zip(*rows, strict=True))
    return [*given, targets if chosen else torch.full_like(targets, IGNORE)]


@torch.no_grad()
def _score(model: EncoderDecoder | MaskedLM, given: list[Tensor], targets: Tensor) -> Tensor:
    """(3,) float64: predicted tokens, the sum of their −log p in nats, and how many are the best guess."""

    def readout(hidden: Tensor, head_weight: Tensor, head_bias: Tensor | None) -> Tensor:
        """Only a chunk's logits, without the padding of the vocabulary, exist."""
        vocab_size = model.config.vocab_size
        weight, bias = head_weight[:vocab_size], None if head_bias is None else head_bias[:vocab_size]
        predicted = targets != IGNORE
        total = torch.zeros(3, dtype=torch.float64, device=hidden.device)
        rows, wanted = hidden[predicted], targets[predicted]
        for h, t in zip(rows.split(_ROWS_AT_A_TIME), wanted.split(_ROWS_AT_A_TIME), strict=True):
            logits = F.linear(h, weight, bias).float()
            nats = F.cross_entropy(logits, t, reduction="none").double().sum()
            right = (logits.argmax(-1) == t).sum()
            total += torch.stack((torch.full_like(nats, len(t)), nats, right.double()))
        return total

    scored: Tensor = model(*given, readout=readout)
    return scored
