"""Configuration that stages over work units share."""

from pydantic import Field

from pipelines.stage_config import How, StageConfig


class UnitsConfig(StageConfig):
    """What a stage that works on a corpus piece by piece is told."""

    workers: How[int | None] = Field(None, gt=0)
    """Actors that work at a time; by default one per CPU of the cluster, as far as its memory goes."""
    memory_per_worker: How[float] = Field(2.0, gt=0)
    """GiB that each actor reserves and is held to: a unit that needs more fails, and not the machine."""
    max_failed_units: int = Field(0, ge=0)
    """Units that may fail (unreadable input, say) and are left out; with more, the stage fails. The command
    then ends with code 3.
    """
