"""The numbers of a training run, as plain frozen data."""

from dataclasses import dataclass
from typing import Literal

from llm.training.schedule import Decay, DecayShape, learning_rate

Algorithm = Literal["adamw", "muon"]
Activations = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Recipe:
    """How long, how fast and how often. The batch itself is the data's business."""

    steps: int
    peak_learning_rate: float
    minimum_learning_rate: float
    warmup_steps: int
    decay: Decay
    """How the learning rate falls after the warm-up."""
    embedding_scale: float
    """What the learning rate is multiplied by for the embedding table,"""
    head_scale: float
    """and for the vocabulary head."""
    weight_decay: float
    betas: tuple[float, float]
    clip_norm: float
    evaluate_every: int
    """Steps between evaluations during training; 0 for none."""
    checkpoint_every: int
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int
    flush_every: int
    """Steps between writes of the metrics to disk and reports to whoever watches."""
    keep_every: int = 0
    """Checkpoints at multiples of so many steps are kept beside the newest; 0 for none."""
    checkpoint_async: bool = True
    """Whether training goes on while a checkpoint is written, at the price of a copy in CPU memory."""
    decay_fraction: float = 0.2
    """Share of the steps, the last, in which the rate of "wsd" falls,"""
    decay_shape: DecayShape = "1-sqrt"
    """and how."""
    algorithm: Algorithm = "adamw"
    """What moves the matrices of the blocks; AdamW moves all else."""
    muon_momentum: float = 0.95
    ema_decay: float = 0.0
    """Of a moving average of the weights, which are replaced by it at the end; 0 for none."""
    outlier_sigmas: float = 0.0
    """Standard deviations above the last steps' mean loss or gradient norm from which on a step is not taken;
    0 to take all.
    """
    compile: bool = False
    """Whether to compile each block, and on a GPU the loss (needs a C++ compiler on a CPU)."""
    activation_checkpointing: Activations = "none"
    """What each block does not keep for the backward pass but computes again."""

    def rate(self, step: int) -> float:
        """Learning rate of `step` (0-based)."""
        return learning_rate(
            step,
            self.steps,
            self.warmup_steps,
            self.peak_learning_rate,
            self.minimum_learning_rate,
            self.decay,
            self.decay_fraction,
            self.decay_shape,
        )
