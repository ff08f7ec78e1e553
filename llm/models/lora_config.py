"""What low-rank adapters are asked for, as plain, frozen data. Imports neither torch nor ray."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LoraConfig(BaseModel):
    """Low-rank adapters (arXiv:2106.09685): few weights are trained, all others stay as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rank: int = Field(default=0, ge=0)
    """Rank of the adapters, such as 16; 0 for none: all weights are trained."""
    alpha: float = Field(default=32.0, gt=0)
    """What an adapter adds is multiplied by alpha / rank."""
    targets: Literal["attention", "mlp", "attention,mlp"] = "attention,mlp"
    """Layers whose matrices have adapters."""

    @model_validator(mode="after")
    def _there_are_adapters_to_describe(self) -> Self:
        described = self.model_dump(exclude_defaults=True)
        if described and not self.rank:
            named = ", ".join(f"{name}={value}" for name, value in described.items())
            raise ValueError(f"{named}: without a rank there are no adapters; give rank too, such as 16")
        return self

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / self.rank
