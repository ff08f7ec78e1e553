"""Configuration of `manta tokenizer`."""

import math
from typing import Literal

from pydantic import Field, field_validator

from pipelines.stage_config import How
from pipelines.unit_config import UnitsConfig


class TokenizerConfig(UnitsConfig):
    """Train a SentencePiece tokenizer on a sample of a corpus."""

    corpus: How[str] = "default"
    """Corpus to learn from, its training split only: NAME or NAME/VERSION. Each message of a conversation is
    a text by itself.
    """
    vocab_size: int = Field(32_000, gt=0)
    """Pieces in all, the 8 special and 256 byte pieces included. It need be no round number: models pad their
    tables to a multiple of 64 by themselves.
    """
    model: Literal["bpe", "unigram", "word", "char"] = "bpe"
    """The kind of SentencePiece model."""
    normalization: Literal["lossless", "nmt_nfkc"] = "lossless"
    """"lossless" keeps every character and learns indentation: for code, and whatever must come back as it
    was. "nmt_nfkc" folds variants and runs of white space: for prose.
    """
    character_coverage: float = Field(0.9995, gt=0, le=1)
    """Share of the text whose characters get pieces of their own; the rest is spelled in bytes."""
    sample_bytes: int = Field(100_000_000, gt=0)
    """About how much text to train on; documents are chosen by a hash of their id. Training takes tens of
    times as much memory, on one node: a sample too large for any is refused before it is taken.
    """
    source_weights: tuple[str, ...] = ()
    """Shares of the sample: with web=2 code=1, two thirds of its bytes are from the source `web`, or from
    what lies in a folder of that name, one third from `code`, and none from others. A source with less text
    than its share gives all of it, once. By default each gives in proportion to its size.
    """
    seed: int = Field(0, ge=0)
    """Another seed samples other documents."""

    @field_validator("source_weights")
    @classmethod
    def _normalised(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        """Sorted, and each number in one spelling: the same question has the same version."""
        weights: dict[str, float] = {}
        for item in given:
            name, weight = _name_and_weight(item)
            if name in weights:
                raise ValueError(f"--source-weights names {name!r} twice")
            weights[name] = weight
        return tuple(f"{name}={repr(weights[name]).removesuffix('.0')}" for name in sorted(weights))

    @property
    def weights(self) -> dict[str, float]:
        """`source_weights` by name."""
        return dict(map(_name_and_weight, self.source_weights))


def _name_and_weight(item: str) -> tuple[str, float]:
    """ "web/=2" → ("web", 2.0). The name may have a "=" too: the last one counts."""
    name, _, number = item.rpartition("=")
    name = name.rstrip("/")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not name or not 0 < weight < math.inf:
        raise ValueError(f"--source-weights {item}: write SOURCE=WEIGHT, with a weight above 0, as in web=2")
    return name, weight
