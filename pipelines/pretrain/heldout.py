"""What a run measures on text that it does not learn from: now and then in training, and of all at the end.

decoder                     bits per byte
encoder-decoder, encoder    loss per predicted token; of an encoder also the share of masked tokens that
                            it guesses
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from llm.data.shards import TokenShards
from llm.evaluation.bits_per_byte import bits_per_byte, unigram_bits_per_byte
from llm.evaluation.heldout_guesses import VIEWS_SEED, Guesses, guesses, window_count
from llm.models.decoder import Decoder
from llm.models.load import LanguageModel
from pipelines.pretrain.batches import objective_of
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.token_source import TokenSource


@dataclass(frozen=True)
class HeldOut:
    """Measures by the names that metrics and counts have; none where nothing is held out. Every rank calls
    them.
    """

    in_training: Callable[[], dict[str, float]]
    """On `config.evaluate_windows` windows."""
    at_the_end: Callable[[], dict[str, Any]]
    """On all, and by source if there are several."""


def held_out(
    model: LanguageModel,
    source: TokenSource,
    config: PretrainConfig,
    opening_id: int | None,
    share: tuple[int, int] | None = None,
) -> HeldOut:
    """opening_id, share: as of `bits_per_byte`."""
    if isinstance(model, Decoder):
        return _by_bits(model, source, config, opening_id, share)
    return _by_guesses(model, source, config, share)


def _by_bits(
    model: Decoder,
    source: TokenSource,
    config: PretrainConfig,
    opening_id: int | None,
    share: tuple[int, int] | None,
) -> HeldOut:
    def score(shards: TokenShards, windows: int | None) -> float:
        return bits_per_byte(model, shards, config.seq_len, config.micro_batch, windows, opening_id, share)

    def in_training() -> dict[str, float]:
        if not source.heldout:
            return {}
        joined = TokenShards.join(list(source.heldout.values()))
        return {"heldout_bits_per_byte": score(joined, config.evaluate_windows)}

    return HeldOut(in_training, lambda: bits_at_the_end(source, lambda shards: score(shards, None)))


def bits_at_the_end(source: TokenSource, score: Callable[[TokenShards], float]) -> dict[str, Any]:
    """Bits per byte of all held-out text, of each source's if there are several, and of the unigram model.

    Those of all are the sources', weighted by their bytes: every token is scored once in either case.
    """
    if not source.heldout:
        return {}
    by_name = {name: score(heldout) for name, heldout in source.heldout.items()}
    joined = TokenShards.join(list(source.heldout.values()))
    bits = math.fsum(by_name[name] * heldout.bytes for name, heldout in source.heldout.items())
    shards = source.loader.shards
    first = dist.get_rank() == 0  # whose measures count, and the others need not read so much for nothing
    unigram = unigram_bits_per_byte(shards, joined, shards.vocab_size) if first else math.nan
    return {
        "heldout_bits_per_byte": bits / joined.bytes,
        **({"heldout_bits_per_byte_of": by_name} if len(by_name) > 1 else {}),
        "unigram_heldout_bits_per_byte": unigram,
    }


def _by_guesses(
    model: LanguageModel, source: TokenSource, config: PretrainConfig, share: tuple[int, int] | None
) -> HeldOut:
    assert not isinstance(model, Decoder)
    views = objective_of(config, source.loader.shards.vocab_size, VIEWS_SEED)
    heldout = {name: shards for name, shards in source.heldout.items() if window_count(shards, config.window)}

    def score(shards: TokenShards, windows: int | None) -> Guesses:
        return guesses(model, shards, config.window, views, config.micro_batch, windows, share)

    def measures(found: Guesses) -> dict[str, float]:
        accuracy = {"heldout_accuracy": found.accuracy} if config.family == "encoder" else {}
        return {"heldout_loss": found.loss} | accuracy

    def in_training() -> dict[str, float]:
        if not heldout:
            return {}
        return measures(score(TokenShards.join(list(heldout.values())), config.evaluate_windows))

    def at_the_end() -> dict[str, Any]:
        if not heldout:
            return {}
        by_name = {name: score(shards, None) for name, shards in heldout.items()}
        losses = {name: found.loss for name, found in by_name.items()}
        together = sum(by_name.values(), start=Guesses(0, 0.0, 0))
        return measures(together) | ({"heldout_loss_of": losses} if len(losses) > 1 else {})

    return HeldOut(in_training, at_the_end)
