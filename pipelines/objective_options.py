"""How much of a text is hidden from a model that learns to fill it in: asked for when one is pre-trained, and
asked of it again when it is evaluated.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from llm.models.config import Family
from pipelines.stage_config import Frozen

if TYPE_CHECKING:
    from llm.data.span_corruption import SpanCorruption
    from llm.training.objectives import Objective


class ObjectiveOptions(Frozen):
    """How much of a text is not shown to a model that learns to fill it in."""

    noise_density: float = Field(default=0.15, gt=0, lt=1)
    """Encoder-decoder: the part of the tokens that is left out."""
    mean_span_length: float = Field(default=3.0, ge=1)
    """Encoder-decoder: how many of them in a row, on average."""
    mask_rate: float = Field(default=0.15, gt=0, le=1)
    """Encoder: the part of the tokens that is to be guessed."""

    @property
    def corruption(self) -> "SpanCorruption":
        """What an encoder-decoder learns from."""
        from llm.data.span_corruption import SpanCorruption  # numpy with it, which --help does without

        return SpanCorruption(self.noise_density, self.mean_span_length)

    def window(self, family: Family, seq_len: int) -> int:
        """Tokens of text that a sequence of `seq_len` is made from; an encoder-decoder's encoder reads fewer
        than that.
        """
        return self.corruption.raw_len(seq_len) if family == "encoder-decoder" else seq_len

    def of(self, family: Family, text_ids: int, seed: int, multiple: int = 1) -> "Objective":
        """What models of the family learn.

        text_ids: pieces of the tokenizer. seed: of holes and masks. multiple: as of `corrupted_spans`.
        """
        from llm.training.objectives import corrupted_spans, masked_tokens, next_token

        if family == "encoder-decoder":
            return corrupted_spans(self.corruption, seed=seed, text_ids=text_ids, multiple=multiple)
        if family == "encoder":
            return masked_tokens(self.mask_rate, seed=seed, text_ids=text_ids)
        return next_token
