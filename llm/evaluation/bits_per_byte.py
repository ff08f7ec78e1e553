"""Held-out bits per byte: how many bits a model needs for each byte of raw text, whatever its tokenizer.

    bits per byte = Σ_tokens −log₂ p(token | context) / (UTF-8 bytes of the raw text)

Every held-out token is scored exactly once, the end-of-text token of each document too. Windows of the
model's length move on by half of it, and their second half is scored, so that a token is predicted from at
least `length // 2` tokens before it where there are so many. The first token of a shard is predicted from the
end-of-text token, which is what precedes a document in training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llm.data.shards import TokenShards
from llm.models.decoder import Decoder
from llm.models.documents import seeing_themselves

IGNORE = -100
_ROWS_AT_A_TIME = 1024  # Positions whose logits exist at once.
_PART_TOKENS = 1 << 20
_COUNTED_PARTS = 256


@dataclass(frozen=True)
class Window:
    """Targets `start` … `start + length − 1` of a shard, after `context` tokens that are only read."""

    shard: int
    start: int
    length: int
    context: int


def windows(shard_tokens: Sequence[int], length: int, limit: int | None = None) -> list[Window]:
    """Windows of up to `length` tokens whose targets together are every token once, or `limit` of them evenly
    spaced.
    """
    context = length // 2
    stride = length - context
    every = [
        Window(shard, start, min(stride, tokens - start), min(start, context))
        for shard, tokens in enumerate(shard_tokens)
        for start in range(0, tokens, stride)
    ]
    if limit is None or limit >= len(every):
        return every
    return [every[index * len(every) // limit] for index in range(limit)]


def bits_per_byte(
    model: Decoder,
    shards: TokenShards,
    length: int,
    batch_size: int,
    limit: int | None = None,
    opening_id: int | None = None,
    share: tuple[int, int] | None = None,
) -> float:
    """Bits per byte of a held-out split under `model`. Every rank calls it and gets the same answer.

    With `limit`, that many windows stand for all; their bits per token are put in proportion to the split's
    bytes per token, since the bytes of a window alone are not recorded.

    Args:
        length: window length in tokens, at most what the model was trained with.
        batch_size: windows in one forward pass.
        opening_id: the token with which documents begin, for a model in whose training they did not see each
            other.
        share: (which, of how many) parts of the windows this rank scores, where others score the same part;
            by default each rank has its own.
    """
    mine = windows(shards.shard_tokens.tolist(), length, limit)
    alone = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    rank, world = share or alone
    passes = math.ceil(len(mine) / (world * batch_size))  # Equal on all ranks: FSDP gathers in every one.
    mine = mine[rank::world]
    device = next(model.parameters()).device
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for start in range(0, passes * batch_size, batch_size):
        inputs, targets = _batch(shards, mine[start : start + batch_size], length)
        nats = _score(model, inputs.to(device), targets.to(device), opening_id)
        total += torch.stack((nats.double().sum(), (targets != IGNORE).sum().to(device)))
    if world > 1:
        dist.all_reduce(total)
    nats_per_token = (total[0] / total[1]).item()
    return nats_per_token / math.log(2) * sum(shards.shard_tokens) / shards.bytes


def unigram_bits_per_byte(train: TokenShards, heldout: TokenShards, vocab_size: int) -> float:
    """Bits per byte of a held-out split under the token frequencies of the training split.

        p(token) = (count + 1) / (tokens + vocab_size)

    What a model must beat by far to have learned more than which tokens are frequent. Of a large training
    split 256 parts of a million tokens are counted, evenly spaced.
    """
    seen, met = _counts(train, vocab_size, _COUNTED_PARTS), _counts(heldout, vocab_size)
    bits = -np.log2((seen + 1) / (seen.sum() + vocab_size))
    return float((met * bits).sum() / heldout.bytes)


def _counts(shards: TokenShards, vocab_size: int, most_parts: int | None = None) -> np.ndarray:
    """(vocab_size,) int64: how often each id occurs, in all parts of the shards or in so many of them."""
    first_part = np.concatenate([[0], np.cumsum(-(-shards.shard_tokens // _PART_TOKENS))])
    parts = int(first_part[-1])
    counted = parts if most_parts is None else min(parts, most_parts)
    counts = np.zeros(vocab_size, dtype=np.int64)
    for index in range(counted):
        part = index * parts // counted
        shard = int(np.searchsorted(first_part, part, side="right")) - 1
        start = (part - int(first_part[shard])) * _PART_TOKENS
        length = min(_PART_TOKENS, int(shards.shard_tokens[shard]) - start)
        counts += np.bincount(shards.read(shard, start, length), minlength=vocab_size)
    return counts


def _batch(shards: TokenShards, chosen: Sequence[Window], length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (windows, length); a rank that has run out of windows gets one with nothing to
    score.
    """
    inputs = np.full((max(1, len(chosen)), length), shards.eos_id, dtype=np.int64)
    targets = np.full_like(inputs, IGNORE)
    for row, window in enumerate(chosen):
        first, count = window.start - window.context, window.context + window.length
        tokens = shards.read(window.shard, first, count)
        before = shards.read(window.shard, first - 1, 1)[0] if first else shards.eos_id
        inputs[row, 0], inputs[row, 1:count] = before, tokens[:-1]
        targets[row, window.context : count] = tokens[window.context :]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


@torch.no_grad()
def _score(model: Decoder, inputs: Tensor, targets: Tensor, opening_id: int | None) -> Tensor:
    """−log p of every target in nats, (batch · length,), 0 where there is none."""

    def readout(hidden: Tensor, head_weight: Tensor, _: Tensor | None) -> Tensor:
        """hidden (batch, length, d_model): only a chunk's logits, without the padding of the vocabulary,
        exist.
        """
        weight = head_weight[: model.config.vocab_size]
        rows = zip(
            hidden.flatten(0, 1).split(_ROWS_AT_A_TIME), targets.flatten().split(_ROWS_AT_A_TIME), strict=True
        )
        return torch.cat(
            [
                F.cross_entropy(F.linear(h, weight).float(), t, ignore_index=IGNORE, reduction="none")
                for h, t in rows
            ]
        )

    return model(inputs, **seeing_themselves(inputs, opening_id), readout=readout)
