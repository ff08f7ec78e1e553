"""Configuration of `manta tokenizer`."""

from typing import Literal

from pydantic import Field

from pipelines.stage_config import How
from pipelines.unit_config import UnitsConfig


class TokenizerConfig(UnitsConfig):
    """Train a SentencePiece tokenizer on a sample of a text corpus."""

    corpus: How[str] = "default"
    """Text corpus to learn from, its training split only: NAME or NAME/VERSION."""
    vocab_size: int = Field(32_000, gt=0)
    """Pieces in all, the 8 special and 256 byte pieces included."""
    model: Literal["bpe", "unigram", "word", "char"] = "bpe"
    """The kind of SentencePiece model."""
    normalization: Literal["lossless", "nmt_nfkc"] = "lossless"
    """"lossless" keeps every character and learns indentation: for code, and whatever must come back as it
    was. "nmt_nfkc" folds variants and runs of white space: for prose.
    """
    character_coverage: float = Field(0.9995, gt=0, le=1)
    """Share of the text whose characters get pieces of their own; the rest is spelled in bytes."""
    sample_bytes: int = Field(100_000_000, gt=0)
    """About how much text to train on; documents are chosen by a hash of their id. Training holds it in
    memory: ten bytes or so for each.
    """
    seed: int = Field(0, ge=0)
    """Another seed samples other documents."""
