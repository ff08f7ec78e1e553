"""Configuration that pre-training and fine-tuning share."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llm.models.config import ModelConfig
from llm.training.recipe import Activations, Algorithm, Recipe
from llm.training.schedule import Decay, DecayShape
from pipelines.stage_config import Frozen, How, Later
from pipelines.wandb_config import WandbConfig


class OptimizerConfig(Frozen):
    """AdamW or Muon with a linear warm-up and a decay (docs/training.md)."""

    algorithm: Later[Algorithm] = "adamw"
    """What moves the matrices of the blocks: adamw, or muon at the same learning rate. Embeddings, heads,
    routers, norms and biases are AdamW's in either case.
    """
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak learning rate."""
    min_learning_rate: float = Field(default=3e-4, ge=0)
    """Learning rate at the end."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps of linear warm-up from zero."""
    decay: Decay = "cosine"
    """How the learning rate falls from its peak to its minimum: along half a cosine, along a line, or only at
    the end (wsd: warm-up, stable, decay).
    """
    decay_fraction: Later[float] = Field(default=0.2, ge=0, le=1)
    """wsd: share of the steps, the last, in which the learning rate falls; 0 for a run to be extended."""
    decay_shape: Later[DecayShape] = "1-sqrt"
    """wsd: how it falls then."""
    embedding_scale: float = Field(default=1.0, gt=0)
    """Multiplies the learning rate of the embedding table: 3 to 5 helps where it is not the head too."""
    head_scale: float = Field(default=1.0, gt=0)
    """Multiplies the learning rate of a vocabulary head with weights of its own."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decay of matrices; norms do not decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the gradient's running mean."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the squared gradient's running mean."""
    muon_momentum: Later[float] = Field(default=0.95, ge=0, lt=1)
    """Decay of Muon's running mean of the gradient."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Global gradient norm above which gradients are scaled down; 0 for never."""
    z_loss: Later[float] = Field(default=0.0, ge=0)
    """Coefficient of the squared log-normaliser of each prediction, 1e-4 in PaLM; 0 for none."""
    outlier_sigmas: Later[float] = Field(default=0.0, ge=0)
    """Leave out a step whose loss or gradient norm is so many standard deviations above the mean of the last
    128 steps, 6 in OLMo 2; 0 to take all.
    """
    ema_decay: Later[float] = Field(default=0.0, ge=0, lt=1)
    """Decay of a moving average of the weights, step by step, which is the model in the end; 0 for none."""

    @model_validator(mode="after")
    def _minimum_below_peak(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}: "
                "lower it or raise the peak"
            )
        return self

    @model_validator(mode="after")
    def _options_are_of_what_is_chosen(self) -> Self:
        chosen = {"decay_fraction": "wsd", "decay_shape": "wsd", "muon_momentum": "muon"}
        for name, needed in chosen.items():
            value = getattr(self, name)
            option = "algorithm" if needed == "muon" else "decay"
            if value != type(self).model_fields[name].default and getattr(self, option) != needed:
                raise ValueError(f"{name}={value} is an option of {option}={needed}: give both, or neither")
        return self


class TrainingConfig(WandbConfig):
    """What a stage that trains a language model is told."""

    optimizer: OptimizerConfig = OptimizerConfig()
    global_batch: int = Field(default=16, gt=0)
    """Sequences in one optimizer step, over all workers."""
    seed: int = Field(default=0, ge=0)
    """Decides the initial weights and the order of the data."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of matmuls and activations: auto is bf16 where the devices multiply it in hardware, else fp32.
    Weights and sums of gradients are fp32 always. A run that goes on elsewhere keeps what auto was at
    first.
    """

    float8: Later[bool] = False
    """Multiply in float8 in the blocks: on H100s and later, with torchao, and best with --compile."""

    workers: How[int | tuple[int, int]] = 1
    """Processes to train on; every one holds a shard of the model and a share of the batch. Two numbers, the
    fewest and the most, let the run shrink and grow with the cluster, on the same batches.
    """
    threads_per_worker: How[int] = Field(default=0, ge=0)
    """CPU threads of each worker; 0 shares the cluster's CPUs evenly."""
    micro_batch: How[int] = Field(default=8, gt=0)
    """Sequences that a worker takes through the model at a time."""
    evaluate_every: How[int] = Field(default=100, ge=0)
    """Steps between evaluations on held-out data during training; 0 for none."""
    checkpoint_every: How[int] = Field(default=100, gt=0)
    """Steps between checkpoints."""
    keep_checkpoints: How[int] = Field(default=2, gt=0)
    """Newest checkpoints to keep."""
    keep_every: How[int] = Field(default=0, ge=0)
    """Also keep checkpoints at multiples of so many steps, for ever; 0 for none."""
    checkpoint_async: How[bool] = True
    """Whether training goes on while a checkpoint is written, which takes CPU memory for a copy of weights
    and optimizer state; with --no-checkpoint-async it waits.
    """
    log_every: How[int] = Field(default=10, gt=0)
    """Steps between writes of the metrics."""
    max_failures: How[int] = Field(default=3, ge=-1)
    """How often to start the workers again after one has died; -1 for ever."""
    hang_timeout: How[float] = Field(default=600.0, ge=0)
    """Seconds after which a step that makes no progress (no collective or micro-batch begun, no end) has
    hung: stacks are written, and the workers start again. The first step may take three times as long; 0 for
    never.
    """
    compile: How[bool] = False
    """Compile the blocks, and on GPUs the loss, with torch.compile (on a CPU this needs a C++ compiler)."""
    activation_checkpointing: How[Activations] = "none"
    """What to compute again in the backward pass, for less memory: selective all but matrix products and
    attention, full everything in the blocks. The result is the same.
    """
    deterministic: How[bool] = False
    """Let a GPU use only algorithms that give the same bits each time; slower. CPUs do in any case."""

    @property
    def fewest_workers(self) -> int:
        """Processes that the run can do with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Processes that it has use for."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def workers_per_share(self) -> int:
        """Workers that read the same sequences."""
        return 1

    @model_validator(mode="after")
    def _workers_are_possible(self) -> Self:
        if not 1 <= self.fewest_workers <= self.most_workers:
            raise ValueError(f"workers={self.workers}: give one number from 1, or the fewest and the most")
        if self.most_workers > self.global_batch * self.workers_per_share:
            raise ValueError(
                f"workers={self.workers} is more than global_batch={self.global_batch}: some would be idle; "
                "raise the batch or lower the workers"
            )
        return self

    @model_validator(mode="after")
    def _float8_is_possible(self) -> Self:
        if self.float8 and self.precision == "fp32":
            raise ValueError("float8 multiplies what is bf16 otherwise: leave out --precision fp32")
        return self

    def moving(self, model: ModelConfig) -> dict[str, Any]:
        """Part of a version beside the options: that Muon moves experts, which were AdamW's once."""
        return {"muon_moves": "experts"} if self.optimizer.algorithm == "muon" and model.n_experts else {}

    def recipe(self, steps: int) -> Recipe:
        """The numbers of a run of `steps` steps, for the training loop."""
        optimizer = self.optimizer
        return Recipe(
            steps=steps,
            peak_learning_rate=optimizer.learning_rate,
            minimum_learning_rate=optimizer.min_learning_rate,
            warmup_steps=optimizer.warmup_steps,
            decay=optimizer.decay,
            embedding_scale=optimizer.embedding_scale,
            head_scale=optimizer.head_scale,
            weight_decay=optimizer.weight_decay,
            betas=(optimizer.beta1, optimizer.beta2),
            clip_norm=optimizer.clip_norm,
            evaluate_every=self.evaluate_every,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            keep_every=self.keep_every,
            checkpoint_async=self.checkpoint_async,
            flush_every=self.log_every,
            decay_fraction=optimizer.decay_fraction,
            decay_shape=optimizer.decay_shape,
            algorithm=optimizer.algorithm,
            muon_momentum=optimizer.muon_momentum,
            ema_decay=optimizer.ema_decay,
            outlier_sigmas=optimizer.outlier_sigmas,
            compile=self.compile,
            activation_checkpointing=self.activation_checkpointing,
        )
