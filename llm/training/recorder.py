"""What a run tells about itself while it goes: metrics on disk, speed on disk, the latest of both to a
watcher.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from llm.training.metrics_log import JsonLines


class Superseded(RuntimeError):
    """Another process has taken this run over: this one must not write any more."""


class Recorder:
    """Writes on rank 0 and does nothing on the others.

    `metrics.jsonl` has one line a step and only numbers that a repeated run would repeat. Clock readings go
    to `timing.jsonl`: one line a flush, with the seconds spent in training steps alone (not in evaluation or
    checkpoints), how many of them went by waiting for data, the tokens learned from per such second, and
    `readings`; and one line a checkpoint, with the seconds that training waited for it and those until it was
    committed.

    To make a recorder or to flush one raises Superseded where another process has taken the run over.
    """

    def __init__(
        self,
        folder: Path,
        resumed_step: int,
        flush_every: int,
        watcher: Callable[[dict[str, Any]], None],
        may_write: Callable[[], bool],
        readings: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """readings: further clock readings and the like, since it was called last."""
        self._flush_every, self._watcher, self._may_write = flush_every, watcher, may_write
        self._readings = readings
        self._seconds, self._data_wait, self._tokens = 0.0, 0.0, 0
        self._latest: dict[str, Any] = {}
        self._told_step = resumed_step
        self._untold: dict[str, float] = {}
        self.writes = not dist.is_initialized() or dist.get_rank() == 0
        """Whether this is rank 0."""
        if self.writes:
            self._check()
            self._metrics = JsonLines(folder / "metrics.jsonl", resumed_step)
            self._timing = JsonLines(folder / "timing.jsonl", resumed_step)

    def record(self, metrics: dict[str, Any], seconds: float, data_wait: float) -> None:
        """Take one step's metrics (`step` and `tokens` among them), how long the step took, and how much of
        that it waited for data.
        """
        if not self.writes:
            return
        self._metrics.append(metrics)
        self._latest = metrics
        self._seconds, self._tokens = self._seconds + seconds, self._tokens + metrics["tokens"]
        self._data_wait += data_wait
        if metrics["step"] % self._flush_every == 0:
            self.flush()

    def flush(self, durable: bool = False) -> None:
        """Write what is pending and tell the watcher; `durable` waits for the disk.

        Raises:
            Superseded: another process writes this run now.
        """
        if not self.writes:
            return
        self._check()
        speed: dict[str, Any] = {}
        if self._tokens:
            speed = {"seconds": self._seconds, "data_wait_seconds": self._data_wait}
            speed["tokens_per_s"] = self._tokens / self._seconds
            speed |= self._readings()
            self._timing.append({"step": self._latest["step"], **speed})
            self._seconds, self._data_wait, self._tokens = 0.0, 0.0, 0
        self._metrics.flush(durable)
        self._timing.flush()
        if self._latest:
            self._watcher(self._latest | speed | self._untold)
            self._told_step = self._latest["step"]
            self._latest, self._untold = {}, {}

    def _check(self) -> None:
        if not self._may_write():
            raise Superseded("another process has taken over this training run; this one stops")

    def checkpointed(self, step: int, held_up: float, committed: float) -> None:
        """Take how long the checkpoint after `step` held up training, and how long it took until it was
        committed, in seconds. Steps may have been recorded since.
        """
        if not self.writes:
            return
        seconds = {"checkpoint_seconds": held_up, "checkpoint_commit_seconds": committed}
        self._timing.append({"step": step, **seconds})
        self._timing.flush()
        if step < self._told_step:
            self._untold = seconds  # Who draws curves takes no step that is earlier than the last.
        else:
            self._watcher({"step": step, **seconds})
