"""Configuration of `manta export`."""

from typing import Annotated, Literal

import tyro
from pydantic import Field

from pipelines.stage_config import Frozen


class ExportConfig(Frozen):
    """Write a model as a Hugging Face directory, which transformers and vLLM load unchanged."""

    model: Annotated[str, tyro.conf.Positional]
    """NAME or models/NAME, its newest version, or with /VERSION. One that is not finished is written as its
    newest checkpoint has it, while its training goes on.
    """
    to: str
    """Folder to write: a new one, or an empty one."""
    step: int | None = Field(default=None, gt=0)
    """Write it as the checkpoint of this step has it, of those that are still there."""
    root: str = "runs/default"
    """Where the model is."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Data type of the weights."""
