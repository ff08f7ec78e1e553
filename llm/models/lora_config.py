"""What low-rank adapters are asked for, as plain, frozen data. Imports neither torch nor ray."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LoraConfig(BaseModel):
    """Low-rank adapters (arXiv:2106.09685): few weights are trained, all others stay as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rank: int = Field(default=0, ge=0)
    """Rank of the adapters, such as 16; 0 for none: all weights are trained."""
    alpha: float = Field(default=32.0, gt=0)
    """What an adapter adds is multiplied by alpha / rank."""
    targets: Literal["attention", "mlp", "attention,mlp"] = "attention,mlp"
    """Layers whose matrices have adapters."""

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / self.rank
