"""Configuration of supervised fine-tuning."""

from typing import Any, Self

from pydantic import Field, model_validator

from llm.models.lora_config import LoraConfig
from pipelines.model_options import ModelOptions
from pipelines.parallel_config import ParallelTrainingConfig
from pipelines.stage_config import How, Later
from pipelines.training_config import OptimizerConfig

BASE, NO_PRESET = "base", "none"


class FinetuneConfig(ParallelTrainingConfig):
    """Teach a base model to answer, from conversations; only the assistant's words are learned.

    A decoder learns all that the assistant says. An encoder-decoder reads what comes before its last answer,
    and learns to write that.
    """

    base: How[str] = BASE
    """Model to start from: NAME or NAME/VERSION under models/."""
    model: Later[ModelOptions] = ModelOptions(preset=NO_PRESET)
    """A new model to train from scratch in place of --base, such as --model.preset transformer-base; it takes
    a --tokenizer too.
    """
    tokenizer: How[str | None] = None
    """Tokenizer of a new model: NAME or NAME/VERSION under tokenizers/, or models/NAME for that of a model. A
    base model has its own.
    """
    corpus: How[str] = "chat"
    """Conversations to learn from: NAME or NAME/VERSION under corpora/."""
    epochs: int = Field(default=2, gt=0)
    """Times that every conversation is seen."""
    max_seq_len: int = Field(default=256, gt=1)
    """Longer conversations, in tokens, are left out; of an encoder-decoder, those with more to read."""
    max_target_len: Later[int | None] = Field(default=None, gt=1)
    """Encoder-decoder: conversations with a longer answer, in tokens, are left out; --max-seq-len by default.
    """
    packing: Later[bool] = False
    """Fill sequences of --max-seq-len with several conversations each, which do not see each other (best fit:
    arXiv:2404.10830). --global-batch then counts sequences, and an epoch may leave out a few conversations.
    """
    lora: Later[LoraConfig] = LoraConfig()
    """Train adapters, and merge them into the base model's weights at the end."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, min_learning_rate=0.0, warmup_steps=20)
    evaluate_conversations: How[int] = Field(default=128, gt=0)
    """Held-out conversations scored at each evaluation during training; at the end all are."""

    @model_validator(mode="after")
    def _rates_are_of_what_is_trained(self) -> Self:
        if self.adapters is not None and self.optimizer.algorithm == "muon":
            raise ValueError(
                f"optimizer.algorithm=muon: adapters (lora.rank={self.lora.rank}) are of low rank, which "
                "Muon's updates are not; use adamw"
            )
        for name in ("embedding_scale", "head_scale"):
            scale = getattr(self.optimizer, name)
            if self.adapters is not None and scale != 1:
                raise ValueError(
                    f"optimizer.{name}={scale}: with adapters (lora.rank={self.lora.rank}) embeddings and "
                    "head stay as they are; leave it out, or the adapters"
                )
        return self

    @model_validator(mode="after")
    def _matrices_with_adapters_are_not_rounded(self) -> Self:
        if self.adapters is not None and self.float8:
            raise ValueError(
                f"float8: matrices with adapters (lora.rank={self.lora.rank}) are not multiplied in float8; "
                "leave out one of the two"
            )
        return self

    @model_validator(mode="after")
    def _workers_can_divide_what_is_asked(self) -> Self:
        for name in ("tensor", "pipeline"):
            if self.adapters is not None and getattr(self.parallel, name) > 1:
                raise ValueError(
                    f"parallel.{name}={getattr(self.parallel, name)}: adapters (lora.rank={self.lora.rank}) "
                    "are not divided so; leave it out, and the workers shard the model"
                )
        if self.parallel.pipeline > 1 and not self.packing:
            raise ValueError(
                f"parallel.pipeline={self.parallel.pipeline} takes sequences of one length: add packing"
            )
        return self

    @model_validator(mode="after")
    def _there_is_one_model_to_begin_with(self) -> Self:
        if not self.from_scratch:
            if self.tokenizer is not None:
                raise ValueError(
                    f"tokenizer={self.tokenizer} is for a new model, and {self.base} has its own: leave it "
                    "out, or give model.preset"
                )
            if self.model != type(self).model_fields["model"].default:
                raise ValueError("model: a shape is for a new model: give model.preset too")
            return self
        preset = f"model.preset={self.model.preset}"
        shape = self.model.shape(vocab_size=1)
        if self.base != BASE:
            raise ValueError(f"{preset} is a new model, base={self.base} another one: give one of them")
        if self.tokenizer is None:
            raise ValueError(f"{preset}: a new model needs a tokenizer: give its name")
        if self.adapters is not None:
            raise ValueError(f"lora.rank={self.lora.rank}: adapters need a base model; leave out {preset}")
        if shape.family == "encoder":
            raise ValueError(f"{preset} is an encoder, which writes nothing; use another family")
        return self

    def what(self) -> dict[str, Any]:
        """With the shape of a new model in place of its name."""
        if not self.from_scratch:
            return super().what()
        return super().what() | {"model": self.model.what()} | self.moving(self.model.shape(vocab_size=1))

    @property
    def from_scratch(self) -> bool:
        """Whether the model is a new one."""
        return self.model.preset != NO_PRESET

    @property
    def longest_target(self) -> int:
        """Tokens of the longest answer that an encoder-decoder learns."""
        return self.max_target_len or self.max_seq_len

    @property
    def adapters(self) -> LoraConfig | None:
        """Those to train; None if all weights are trained."""
        return self.lora if self.lora.rank else None
