"""The numbers of a training run, as plain frozen data."""

from dataclasses import dataclass

from llm.training.schedule import Decay


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
    compile: bool = False
    """Whether to compile each block (needs a C++ compiler on a CPU)."""
