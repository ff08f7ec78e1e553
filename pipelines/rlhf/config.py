"""Configuration of `manta rlhf`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.stage_config import Frozen, How
from pipelines.wandb_config import WandbConfig


class PPOConfig(Frozen):
    """Proximal policy optimisation, with a critic and a penalty on the distance from the chat model."""

    epochs: int = Field(default=1, gt=0)
    """Passes over the rollouts of one iteration."""
    minibatches: int = Field(default=4, gt=0)
    """Optimizer steps in one pass."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Of the policy."""
    critic_learning_rate: float = Field(default=5e-4, gt=0)
    """Of the critic."""
    warmup_iterations: int = Field(default=1, ge=0)
    """Iterations at the beginning in which only the critic learns."""
    clip: float = Field(default=0.2, gt=0)
    """How far the ratio of new to old probability may move from 1 and still give a gradient."""
    value_clip: float = Field(default=0.5, gt=0)
    """How far a value may move in one iteration and still give a gradient."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of a token's reward for the token before it."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Advantages: 0 trusts the critic alone, 1 the rewards alone."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Reward of entropy, per nat and token."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Longest gradient; longer ones are shortened to it. Policy and critic each for itself."""


class KLConfig(Frozen):
    """The penalty on the distance from the chat model: beta times log(policy / chat model), on each token."""

    beta: float = Field(default=0.05, ge=0)
    """The penalty's coefficient, at the beginning."""
    target: float | None = Field(default=None, gt=0)
    """Nats a response to steer towards by changing beta; by default beta stays."""
    horizon: int = Field(default=10_000, gt=0)
    """Responses over which beta follows the target."""


class RLHFConfig(WandbConfig):
    """Align a chat model with a reward model: sample, score, learn, send the weights back, again."""

    model: How[str] = "chat"
    """Chat model to begin with and to stay near: NAME or NAME/VERSION."""
    reward_model: How[str] = "reward"
    """Reward model that scores the responses."""
    corpus: How[str] = "chat"
    """Conversation corpus whose training split gives the prompts."""
    iterations: int = Field(default=16, gt=0)
    """Rounds of sampling and learning."""
    prompts: int = Field(default=4096, gt=0)
    """Prompts to use; chosen by a hash of their id, and used again when all were."""
    rollouts: int = Field(default=128, gt=0)
    """Responses an iteration, each to another prompt."""
    max_prompt_tokens: int = Field(default=128, gt=0)
    """Longer prompts are passed over."""
    max_tokens: int = Field(default=96, gt=0)
    """Tokens after which a response is cut off."""
    temperature: float = Field(default=0.8, gt=0)
    """Of the sampling, and so of every probability in the loss."""
    missing_end_penalty: float = Field(default=1.0, ge=0)
    """Taken off the score of a response that was cut off."""
    ppo: PPOConfig = PPOConfig()
    kl: KLConfig = KLConfig()
    precision: Literal["bf16", "fp32"] = "fp32"
    """Of the learner's matrix products; engines and scorer use fp32."""
    seed: int = Field(default=0, ge=0)
    """Decides prompts and samples."""
    learners: How[int] = Field(default=1, gt=0)
    """Processes that share the learner's weights (FSDP)."""
    engines: How[int] = Field(default=1, gt=0)
    """Processes that generate."""
    micro_batch: How[int] = Field(default=16, gt=0)
    """Responses in one forward and backward pass of one learner."""
    max_batch: How[int] = Field(default=128, gt=0)
    """Responses that one engine generates at a time."""
    threads: How[int | None] = Field(default=None, gt=0)
    """CPU threads of each process; by default an equal share of the cluster's CPUs among the engines, then
    among the learners: the phases take turns.
    """
    checkpoint_every: How[int] = Field(default=5, gt=0)
    """Iterations between checkpoints."""
    keep_checkpoints: How[int] = Field(default=2, gt=0)
    """Newest checkpoints to keep."""
    checkpoint_async: How[bool] = True
    """Learn on while a checkpoint is written; takes CPU memory for a copy of weights and optimizer state."""

    @model_validator(mode="after")
    def _check_division(self) -> Self:
        share = self.ppo.minibatches * self.learners
        if self.rollouts % share:
            raise ValueError(
                f"rollouts={self.rollouts} must be a multiple of minibatches × learners = {share}: "
                f"use {-(-self.rollouts // share) * share}"
            )
        return self
