"""How workers divide a model and its rows among them."""

from pydantic import Field

from llm.training.parallel.layout import ParallelLayout
from pipelines.stage_config import Frozen


class ParallelConfig(Frozen):
    """Ways to divide a run besides sharding. Workers that these leave over shard the model (FSDP)."""

    replicate: int = Field(default=1, ge=1)
    """Copies of the sharded model. Within each, workers exchange more than between them: one a node."""
    tensor: int = Field(default=1, ge=1)
    """Workers among which heads and feed-forward columns are divided, which exchange most."""
    context: int = Field(default=1, ge=1)
    """Workers among which the tokens of a row are divided, where rows are too long for one."""
    pipeline: int = Field(default=1, ge=1)
    """Workers among which the blocks are divided, each with some that follow one another."""
    expert: int = Field(default=1, ge=1)
    """Workers among which the experts of a mixture are divided. These workers are not further ones, but of
    those that shard the model or divide it by --tensor or --context.
    """

    @property
    def parts_of_rows(self) -> int:
        """Into which a row is cut: as many tokens go into each."""
        return self.tensor * (2 * self.context if self.context > 1 else 1)

    def layout(self, workers: int) -> ParallelLayout:
        """Of so many workers; raises LayoutError if they cannot be divided so."""
        return ParallelLayout.filling(workers, **self.model_dump())
