"""Configuration of `manta reward`."""

from typing import Self

from pydantic import Field, model_validator

from pipelines.stage_config import How
from pipelines.training_config import OptimizerConfig, TrainingConfig


class RewardConfig(TrainingConfig):
    """Train a reward model on rankings: a chat model with one number in the place of the next token."""

    model: How[str] = "chat"
    """Chat model to start from: NAME or NAME/VERSION."""
    preferences: How[str] = "preferences"
    """Rankings to learn from."""
    epochs: int = Field(default=1, gt=0)
    """Times that every ranking is seen."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3, min_learning_rate=0.0, warmup_steps=5, weight_decay=0.01
    )
    global_batch: int = Field(default=8, gt=0)
    """Rankings in one optimizer step, over all workers."""
    micro_batch: How[int] = Field(default=8, gt=0)
    """Rankings, with all their responses, that a worker takes through the model at a time."""
    evaluate_every: How[int] = Field(default=0, ge=0)
    """Steps between evaluations on held-out rankings during training; 0 for one at the end."""

    @model_validator(mode="after")
    def _has_no_vocabulary_head(self) -> Self:
        if self.optimizer.head_scale != 1:
            raise ValueError(
                f"optimizer.head_scale={self.optimizer.head_scale}: a reward model has no vocabulary head; "
                "use optimizer.learning_rate"
            )
        if self.optimizer.z_loss:
            raise ValueError(
                f"optimizer.z_loss={self.optimizer.z_loss}: a reward model has no vocabulary; leave it out"
            )
        return self
