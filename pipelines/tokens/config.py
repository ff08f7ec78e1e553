"""Configuration of `manta tokens`."""

from pydantic import Field

from pipelines.stage_config import How, StageConfig


class TokensConfig(StageConfig):
    """Encode a text corpus with a tokenizer into shards that training reads."""

    corpus: How[str] = "default"
    """Text corpus to encode, both splits: NAME or NAME/VERSION."""
    tokenizer: How[str] = "default"
    """Tokenizer to encode with: NAME or NAME/VERSION."""
    workers: How[int | None] = Field(None, gt=0)
    """Actors that encode at a time; by default one per CPU of the cluster."""
