"""How workers divide a model and its rows among them."""

import math

from pydantic import Field

from llm.models.config import ModelConfig
from llm.training.parallel.layout import LayoutError, ParallelLayout
from pipelines.stage_config import Frozen, How
from pipelines.training_config import TrainingConfig


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
    those that shard the model or divide it by --parallel.tensor or --parallel.context.
    """

    @property
    def row_multiple(self) -> int:
        """As of the layout."""
        return ParallelLayout(context=self.context, tensor=self.tensor).row_multiple

    def layout(self, workers: int) -> ParallelLayout:
        """Of so many workers; raises LayoutError if they cannot be divided so."""
        return ParallelLayout.filling(workers, **self.model_dump())


class ParallelTrainingConfig(TrainingConfig):
    """What a stage is told whose workers may divide the model."""

    parallel: How[ParallelConfig] = ParallelConfig()
    """How the workers divide the model and its sequences. The result is the same up to the order of sums, and
    a run may go on divided in another way.
    """

    @property
    def workers_per_share(self) -> int:
        return self.parallel.tensor * self.parallel.context * self.parallel.pipeline

    def check_parallel(self, shape: ModelConfig, seq_len: int) -> None:
        """Raise ValueError unless a model of this shape can be divided so, in rows of `seq_len` tokens."""
        if self.parallel.tensor > 1 and (self.optimizer.algorithm == "muon" or self.float8):
            other = "optimizer.algorithm=muon" if self.optimizer.algorithm == "muon" else "float8"
            raise ValueError(
                f"parallel.tensor={self.parallel.tensor} divides matrices that {other} needs whole: use "
                "one or the other"
            )
        if not isinstance(self.workers, int) and self.parallel != ParallelConfig():
            raise ValueError(
                f"workers={self.workers}: a run that shrinks and grows is only sharded; give one number of "
                "workers, or no --parallel options"
            )
        try:
            layout = self.parallel.layout(self.fewest_workers)
            layout.check_model(shape, seq_len)
        except LayoutError as error:
            raise ValueError(f"parallel: {error}") from None
        share, stages = math.ceil(self.global_batch / layout.data), layout.pipeline
        passes = math.ceil(share / self.micro_batch)
        if passes < stages:
            raise ValueError(
                f"parallel.pipeline={stages} keeps as many micro-batches under way, and a share of {share} "
                f"sequences makes {passes} of micro_batch={self.micro_batch}: "
                + (f"lower micro_batch to {share // stages}" if share >= stages else "raise global_batch")
            )
