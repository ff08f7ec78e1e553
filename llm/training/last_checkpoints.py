"""Checkpoints while machines of the run are about to be taken back.

From a notice on, until the machines are gone, a checkpoint is begun when the last one is committed and its
holding up training has become a tenth of the time since. All ranks are to save after the same step:

    rank 0      after step s: "after step s + 1"            after step s + 1: save
    rank r                      takes step s + 1 with rank 0, after it: reads that, saves

Steps end with a sum over all ranks. So whoever ends step s + 1 knows what rank 0 had said before it.
"""

import time
from collections.abc import Callable

from llm.training.noticeboard import Noticeboard

_SHARE = 0.1
"""Of the time, at most, may go into saving."""
_TOPIC = "checkpoint-after"


class Noticed:
    """Says whether to save now, where one process decides for all.

    Args:
        noticed: whether there is a notice.
    """

    def __init__(self, noticed: Callable[[], bool]) -> None:
        self._noticed = noticed
        self._saving: int | None = None
        self._not_before = 0.0

    def wanted(self) -> bool:
        """Whether there is a notice, and time for a checkpoint."""
        return self._saving is None and time.monotonic() >= self._not_before and self._noticed()

    def saving(self, step: int) -> None:
        """The checkpoint of a step is begun, this one or one that was due anyway."""
        self._saving = step

    def saved(self, step: int, held_up: float) -> None:
        """One is committed, and has held up training for so many seconds. The next may have been begun."""
        self._not_before = time.monotonic() + held_up / _SHARE
        if step == self._saving:
            self._saving = None


class LastCheckpoints(Noticed):
    """Says when to save, on all ranks. Every rank makes the same calls, and rank 0's answers count.

    Args:
        noticed: as of `Noticed`; asked on rank 0 after every step.
    """

    def __init__(self, noticed: Callable[[], bool]) -> None:
        super().__init__(noticed)
        self._board = Noticeboard()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after `step` steps; asked after every step."""
        due = bool(self._board.told_by(0, _TOPIC) == step)
        if self._board.rank == 0 and not due and self.wanted():
            self._board.tell(_TOPIC, step + 1)
        return due
