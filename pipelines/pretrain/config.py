"""Configuration of pre-training."""

from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from llm.models.config import ModelConfig
from llm.models.presets import model_config
from pipelines.pretrain.mixture import TokensChoice, parse_tokens
from pipelines.stage_config import Frozen, How
from pipelines.training_config import TrainingConfig


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


class PretrainConfig(TrainingConfig):
    """Train a language model from scratch on token shards."""

    tokens: How[str] = "default"
    """Token shards to learn from: NAME or NAME/VERSION under tokens/. Several are mixed by weights,
    web=7,code=3, which may change after so many tokens: "web=7,code=3; 2e9: web=5,code=3,math=2".
    """
    copy_tokens_up_to: How[int] = Field(default=50 * 2**30, ge=0)
    """Bytes of tokens artifacts in object storage that are copied to each node's disk, and checked, before
    training. Of larger ones each worker reads its share over the network, a sample at a time and ahead.
    """
    model: ModelOptions = ModelOptions()
    steps: int = Field(default=1000, gt=0)
    """Optimizer steps."""
    seq_len: int = Field(default=256, gt=1)
    """Tokens in one training sequence."""
    document_mask: bool = False
    """Let the documents of a sequence not see each other, and count positions anew in each (Zhao et al. 2024,
    arXiv:2402.13991). Attention then has a mask, which costs time.
    """
    extends: How[str | None] = None
    """Finished pre-trained model to train on, up to --steps in all: NAME or NAME/VERSION. Optimizer state and
    order of the data go on where it stopped; the learning rate follows the schedule of the new length from
    there. Tokens, model, sequence length, batch, seed and precision must be the same; --steps must be more,
    and --optimizer options may differ.
    """
    evaluate_windows: How[int] = Field(default=32, gt=0)
    """Held-out sequences scored at each evaluation during training; at the end all are."""

    def what(self) -> dict[str, Any]:
        """With the model's shape, in place of a name that may mean another shape one day.

        What stands at its default is left out: a field that is added one day then changes no version.
        """
        shape = self.model.shape(vocab_size=1).model_dump(mode="json", exclude_defaults=True)
        del shape["vocab_size"]  # the tokenizer's
        what = super().what() | {"model": shape} | self.sources.what()
        if not self.document_mask:
            del what["document_mask"]  # models that were made before it could be chosen keep their versions
        return what

    @property
    def sources(self) -> TokensChoice:
        """What `tokens` says."""
        return parse_tokens(self.tokens)

    @model_validator(mode="after")
    def _tokens_are_a_mixture(self) -> Self:
        if self.sources.stages:
            try:
                self.sources.mixture(self.seq_len)
            except ValueError as error:
                raise ValueError(f"tokens: {error}") from None
        return self

    @model_validator(mode="after")
    def _numbers_fit_the_model(self) -> Self:
        shape = self.model.shape(vocab_size=1)
        if shape.tie_embeddings and self.optimizer.head_scale != 1:
            raise ValueError(
                f"optimizer.head_scale={self.optimizer.head_scale}: the head of {self.model.preset} is its "
                "embedding table; use optimizer.embedding_scale"
            )
        longest = shape.max_seq_len
        if self.seq_len > longest:
            raise ValueError(
                f"seq_len={self.seq_len} is longer than the model's max_seq_len={longest}: "
                "shorten it or raise --model.max-seq-len"
            )
        return self
