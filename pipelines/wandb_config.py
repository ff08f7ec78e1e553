"""Options of stages whose metrics go to Weights & Biases."""

from typing import Literal

from pipelines.stage_config import How, StageConfig


class WandbConfig(StageConfig):
    """A stage's configuration with the choice of where its metrics go."""

    wandb: How[Literal["auto", "offline", "online", "disabled"]] = "auto"
    """Weights & Biases: auto is online if WANDB_API_KEY is set or WANDB_MODE says so, else offline."""
    wandb_project: How[str] = "manta"
    """Project name in Weights & Biases."""
