"""Checkpoints that are written while training goes on.

    training:    … step  save: wait for the last one, copy   step   step   step …
    background:                                             write, upload, commit

The copy is all that training waits for. It takes as much CPU memory as this rank's share of weights and
optimizer state, from the first checkpoint to the end of the run.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm.training.checkpoint_ranks import RankGroup
from llm.training.checkpoint_tensors import Staging, named_tensors
from llm.training.checkpoint_writing import CheckpointPlace, files_beside, write_checkpoint
from llm.training.hang import CHECKPOINTS
from llm.training.parallel.weights import in_model_rows

Report = Callable[[int, float, float], None]
"""(step, seconds that training was held up, seconds from the call of `save` until it was committed)"""


class CheckpointSaver:
    """Writes a run's checkpoints, one at a time. A context manager: at its end, also after an error, the
    checkpoint in the making is finished. Every rank must make the same calls of `save`.

    An error of the writing comes up in the next call of any method.
    """

    def __init__(self, place: CheckpointPlace, in_background: bool = True) -> None:
        """in_background: if False, `save` returns when the checkpoint is whole, and takes no memory."""
        self._place, self._in_background = place, in_background
        self._staging = Staging()
        self._pending: _Pending | None = None
        # Collectives of two threads over one group would meet each other.
        several = in_background and RankGroup().several
        self._ranks = RankGroup(dist.new_group(backend="gloo", group_desc=CHECKPOINTS) if several else None)
        self._thread = ThreadPoolExecutor(1, "checkpoint", *_same_gpu())

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        attachments: dict[str, bytes],
        report: Report = lambda step, held_up, committed: None,
    ) -> None:
        """Write the checkpoint of this moment; what changes after the return is not in it.

        Args:
            state: what a resumed run needs besides tensors, as JSON types; `step` is added.
            attachments: further files by name, such as config.json.
            report: told once it is committed, by the thread that calls this object.

        Raises:
            Superseded: another process has taken the run over; that of this checkpoint may come up later.
        """
        self.wait()
        began = time.perf_counter()
        tensors, files = named_tensors(model, optimizer), files_beside(step, state, attachments)
        if not self._in_background:
            self._write(step, in_model_rows(tensors, model), files)
            seconds = time.perf_counter() - began
            report(step, seconds, seconds)
            return
        copies = in_model_rows(self._staging.copy(tensors), model)
        writing = self._thread.submit(self._write, step, copies, files)
        self._pending = _Pending(step, writing, report, began, held_up=time.perf_counter() - began)

    def check(self) -> None:
        """See whether the checkpoint in the making is done; does not wait."""
        if self._pending is not None and self._pending.writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when no checkpoint is in the making."""
        pending = self._pending
        if pending is None:
            return
        began = time.perf_counter()
        wait([pending.writing])  # A signal may end this; then the checkpoint is still in the making.
        self._pending = None
        committed = pending.writing.result()
        held_up = pending.held_up + time.perf_counter() - began
        pending.report(pending.step, held_up, committed - pending.began)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"the checkpoint in the making was not finished either: {failure}")
        finally:
            self._thread.shutdown()
            if self._ranks.group is not None:
                dist.destroy_process_group(self._ranks.group)

    def _write(self, step: int, tensors: dict[str, Tensor], files: dict[str, bytes]) -> float:
        """Write it; when it was committed."""
        write_checkpoint(self._place, self._ranks, step, tensors, files)
        return time.perf_counter()


@dataclass(frozen=True)
class _Pending:
    """A checkpoint in the making."""

    step: int
    writing: "Future[float]"
    report: Report
    began: float
    held_up: float


def _same_gpu() -> tuple[Any, ...]:
    """Makes a thread use this one's GPU: torch's writer asks for a stream, and of GPU 0 if none is set."""
    return (torch.cuda.set_device, (torch.cuda.current_device(),)) if torch.cuda.is_initialized() else ()
