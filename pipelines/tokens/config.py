"""Configuration of `manta tokens`."""

from pipelines.stage_config import How
from pipelines.unit_config import UnitsConfig


class TokensConfig(UnitsConfig):
    """Encode a text corpus with a tokenizer into shards that training reads."""

    corpus: How[str] = "default"
    """Text corpus to encode, both splits: NAME or NAME/VERSION."""
    tokenizer: How[str] = "default"
    """Tokenizer to encode with: NAME or NAME/VERSION; models/NAME for that of a model, such as an import."""
