"""What the ranks of a run tell each other about a checkpoint, on one process or many."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class RankGroup:
    """All ranks of the run. Every rank must make the same calls in the same order.

    Calls over one group must not meet those of another thread: a background thread needs a group of its own.
    """

    group: dist.ProcessGroup | None = None
    """Over which they talk; None is the default group, or nobody in a single process."""

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return dist.is_initialized() and dist.get_world_size(self.group) > 1

    @property
    def rank(self) -> int:
        """This one's number."""
        return dist.get_rank(self.group) if dist.is_initialized() else 0

    def all_do(self, action: Callable[[], T]) -> list[T]:
        """What `action` returned on each rank, by rank; what it returns must be picklable.

        If it fails on one rank it fails on all, so that none waits for ever: there with its own error, on the
        others with a RuntimeError that quotes it.
        """
        if not self.several:
            return [action()]
        failure: Exception | None = None
        try:
            mine: tuple[Any, str | None] = (action(), None)
        except Exception as error:
            failure, mine = error, (None, f"{type(error).__name__}: {error}")
        all_of_them: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(all_of_them, mine, group=self.group)
        if failure is not None:
            raise failure
        for rank, (_, problem) in enumerate(all_of_them):
            if problem is not None:
                raise RuntimeError(f"on rank {rank}: {problem}")
        return [result for result, _ in all_of_them]

    def first_does(self, action: Callable[[], T]) -> T:
        """What `action` returned on rank 0, on every rank; the others do not call it. Fails as `all_do`."""
        found = self.all_do(lambda: action() if self.rank == 0 else None)[0]
        return found  # type: ignore[return-value]
