"""Whether a training run fits into memory, and what would make it fit.

    needed = peak of a step (`memory.py`)
             + 4 P / N                   if weights are averaged
             + weights and optimizer     if the copy that checkpoints are written from lies there too

An upper bound, more or less: what `compile`, selective checkpointing and Muon save is not counted.
"""

from dataclasses import dataclass, replace

from llm.models.config import ModelConfig
from llm.planning.memory import Step, training_memory


@dataclass(frozen=True)
class Demand:
    """What a rank is to do."""

    model: ModelConfig
    step: Step
    trained: int | None = None
    """Parameters that have gradients and an optimizer's state; None if all have."""
    averaged: bool = False
    """Whether an average of the trained weights is kept."""
    copied: bool = False
    """Whether what a checkpoint holds is copied into the same memory first."""

    @property
    def needed(self) -> int:
        """Bytes that the rank holds at once."""
        memory, ranks = training_memory(self.model, self.step), self.step.ranks
        state = memory.weights + memory.optimizer
        if self.trained is not None:
            share = -(-self.trained // ranks)
            gradients = 4 * (self.trained if memory.accumulates else share)
            memory = replace(memory, optimizer=8 * share, gradients=gradients, reducing=0)
            state = 3 * 4 * share
        average = state // 3 if self.averaged else 0
        return memory.peak + average + (state + average if self.copied else 0)

    def mends(self, room: int, more_ranks: bool) -> list[str]:
        """Options of `manta pretrain` and `finetune` with each of which it needs no more than `room` bytes.

        more_ranks: whether further ranks would have memory of their own.
        """
        found = []
        checkpointing = replace(self, step=replace(self.step, checkpointing=True))
        cut = self._cut(room)
        if cut is not None and cut.step.micro_batch < self.step.micro_batch:
            found.append(f"--micro-batch {cut.step.micro_batch}")
        if not self.step.checkpointing and checkpointing.needed <= room:
            found.append("--activation-checkpointing full")
        both = checkpointing._cut(room)
        if not found and not self.step.checkpointing and both is not None:
            found.append(f"--micro-batch {both.step.micro_batch} --activation-checkpointing full")
        spread = self._spread(room) if more_ranks else None
        return found + ([f"--workers {spread.step.ranks}"] if spread is not None else [])

    def _cut(self, room: int) -> "Demand | None":
        """The same with the largest micro-batch that fits, by halves."""
        rows, each = self.step.micro_batch * self.step.micro_batches, self.step.micro_batch
        while each:
            cut = replace(self, step=replace(self.step, micro_batch=each, micro_batches=-(-rows // each)))
            if cut.needed <= room:
                return cut
            each //= 2
        return None

    def _spread(self, room: int) -> "Demand | None":
        """The same on twice the ranks, each with half as many rows, or on twice that, until it fits."""
        ranks, rows = self.step.ranks, self.step.micro_batch * self.step.micro_batches
        while rows > 1:
            ranks, rows = 2 * ranks, -(-rows // 2)
            each = min(self.step.micro_batch, rows)
            step = replace(self.step, ranks=ranks, micro_batch=each, micro_batches=-(-rows // each))
            spread = replace(self, step=step)
            if spread.needed <= room:
                return spread
        return None
