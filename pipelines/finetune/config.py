"""Configuration of supervised fine-tuning."""

from typing import Self

from pydantic import Field, model_validator

from llm.models.lora_config import LoraConfig
from pipelines.stage_config import How, Later
from pipelines.training_config import OptimizerConfig, TrainingConfig


class FinetuneConfig(TrainingConfig):
    """Teach a base model to answer, from conversations; only the assistant's words are learned."""

    base: How[str] = "base"
    """Model to start from: NAME or NAME/VERSION under models/."""
    corpus: How[str] = "chat"
    """Conversations to learn from: NAME or NAME/VERSION under corpora/."""
    epochs: int = Field(default=2, gt=0)
    """Times that every conversation is seen."""
    max_seq_len: int = Field(default=256, gt=1)
    """Longer conversations, in tokens, are left out."""
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

    @property
    def adapters(self) -> LoraConfig | None:
        """Those to train; None if all weights are trained."""
        return self.lora if self.lora.rank else None
