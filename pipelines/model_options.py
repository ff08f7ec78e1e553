"""The shape of a new model, as pre-training and fine-tuning are told it."""

from typing import Any

from pydantic import Field, ValidationError

from llm.models.config import Family, ModelConfig
from llm.models.presets import model_config
from llm.tokenizer.special import ADDED_PIECES
from pipelines.stage_config import Frozen


class ModelOptions(Frozen):
    """A preset and what to change in it."""

    preset: str = "quickstart-1m"
    """Named shape, such as quickstart-1m or llama-125m."""
    max_seq_len: int | None = Field(default=None, gt=0)
    """Longest sequence the model may be served with; default: the preset's."""
    d_model: int | None = Field(default=None, gt=0)
    """Width; default: the preset's."""
    n_layers: int | None = Field(default=None, gt=0)
    """Blocks; default: the preset's."""
    n_heads: int | None = Field(default=None, gt=0)
    """Query heads; default: the preset's."""
    n_kv_heads: int | None = Field(default=None, gt=0)
    """Key/value heads; default: the preset's."""
    d_ff: int | None = Field(default=None, gt=0)
    """Width of the feed-forward layers; default: the preset's."""

    def shape(self, vocab_size: int) -> ModelConfig:
        """The model's configuration; raises ValueError if there is no such preset or the changes do not
        fit.
        """
        changes: dict[str, Any] = self.model_dump(exclude={"preset"}, exclude_none=True)
        try:
            return model_config(self.preset, vocab_size, **changes)
        except ValidationError as error:
            raise ValueError(f"model: {error.errors()[0]['msg']}") from None

    def what(self) -> dict[str, Any]:
        """The shape itself, in place of a name that may mean another one day; without the vocabulary, which
        is the tokenizer's, and without defaults.
        """
        shape = self.shape(vocab_size=1).model_dump(mode="json", exclude_defaults=True)
        del shape["vocab_size"]
        return shape

    @property
    def family(self) -> Family:
        """Of the model."""
        return self.shape(vocab_size=1).family

    def trained_shape(self, text_ids: int) -> ModelConfig:
        """The model's configuration with the `text_ids` pieces of a tokenizer and what its family adds."""
        return self.shape(text_ids + len(ADDED_PIECES[self.family]))
