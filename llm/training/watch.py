"""Threads beside each rank's training that see whether steps end, and how much of them is its own work.

The loop says what it begins: to wait for data, a step, or something else (evaluation, a checkpoint). In a
step there must be progress within a limit: a collective or a micro-batch begun, or the step's end. If there
is none, all ranks say where they are, by a way that no collective is part of. While some rank is not in a
step, or moves, the others wait for good reason. Else each writes its stacks, one tells who hung, and all end
their processes: the run can be started again.
"""

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import torch

from llm.training.hang import (
    HANGS,
    Hang,
    Standing,
    collectives_begun,
    hung_ranks,
    this_host,
    write_stacks,
)
from llm.training.noticeboard import Noticeboard
from llm.training.pace import probe_seconds, slowest, waits_for_others
from llm.training.profile_window import Profile, ProfileRequest, ProfileWindow

Phase = Literal["data", "step", "other"]

EXIT_HUNG = 75
"""Exit code of a process that a hang has ended: EX_TEMPFAIL, "try again"."""
FIRST_STEP = 3.0
"""Times the limit that a process's first step may take: blocks are compiled, and memory is found."""
PATIENCE_SECONDS = 30.0
"""In which a rank that lives answers, and writes its stacks; not more than twice the limit."""
PACE_SECONDS = 30.0
"""Of training between two comparisons of the ranks' own times, or of their GPUs."""
_SAMPLE_SECONDS = 0.05
_TALKS, _TALK_SECONDS = 20, 5.0
"""Ranks look at what others say so many times within the limit, and at least every so many seconds."""


@dataclass(frozen=True)
class Observer:
    """Who is told what a run shows of itself besides metrics. Called by a thread beside the training."""

    hang_timeout: float = 0.0
    """Seconds without progress in a step after which it has hung; 0 for never."""
    keep: Callable[[list[Path]], None] = lambda files: None
    """Told which files below the run's folder this rank has written."""
    hung: Callable[[Hang], None] = lambda hang: print(hang, file=sys.stderr, flush=True)
    """Told of a hang by one rank, before the processes end."""
    warn: Callable[[str], None] = lambda text: warnings.warn(text, stacklevel=2)
    """Told of a straggler, on rank 0."""
    profile_wanted: Callable[[], ProfileRequest | None] = lambda: None
    """What is to be traced, if anything; asked every few seconds on rank 0, and answered by"""
    profiled: Callable[[Profile], None] = lambda profile: None
    noticed: Callable[[], bool] = lambda: False
    """Whether machines are about to be taken back; asked on rank 0 after every step, by who trains."""


@dataclass
class _Pace:
    """What was seen of a rank's steps since the last comparison."""

    steps: int = 0
    own: float = 0.0
    waited: float = 0.0


class StepWatch:
    """Watches the thread that makes it, for the length of a `with` block.

    Args:
        folder: the run's.
        device: that it trains on.
    """

    def __init__(self, observer: Observer, folder: Path, device: torch.device) -> None:
        self._observer, self._folder = observer, folder
        self._board = Noticeboard()
        self._trainer = threading.get_ident()
        several, self._device = self._board.ranks > 1, device
        self._samples = several and device.type == "cpu"
        self._probes = several and not self._samples
        self._probed = time.monotonic()
        self._stop = threading.Event()
        self._profiles = ProfileWindow(self._board, folder, device)
        limit = observer.hang_timeout or 2 * _TALK_SECONDS * _TALKS
        self._every = min(max(limit / _TALKS, 0.1), _TALK_SECONDS)
        self._threads = [
            threading.Thread(target=each, name=name, daemon=True)
            for name, each in (("watch", self._watch), ("talk", self._talk))
        ]
        self._asked: float | None = None
        self._phase: Phase = "other"
        self._step, self._first = 0, True
        self._moved, self._collectives = time.monotonic(), 0
        self._round = 0
        self._pace, self._slow = _Pace(), -1
        self._measured: _Pace | None = None
        self._kept: Path | None = None
        self._readings: dict[str, float] = {}
        self._waited, self._waited_told = 0.0, 0.0

    def begins(self, phase: Phase, step: int) -> None:
        """The loop begins something; `step` counts from 0. A step begins with its data."""
        if phase == "data":
            self._profiles.begins(step)
            if self._probes and time.monotonic() - self._probed >= PACE_SECONDS:
                self._measured, self._probed = _Pace(1, probe_seconds(self._device)), time.monotonic()
        if self._phase == "step":
            self._step_ends()
        self._phase, self._step, self._moved = phase, step, time.monotonic()

    def following(self, loss_sum: Callable[..., Any]) -> Callable[..., Any]:
        """`loss_sum`, of which each call is progress: a step of many micro-batches may be long, and a process
        alone begins no collectives in it.
        """

        def followed(*micro_batch: Any) -> Any:
            self._moved = time.monotonic()
            return loss_sum(*micro_batch)

        return followed

    def _step_ends(self) -> None:
        """Own times are of whole steps, and not of the first, which is like no other."""
        if self._first:
            self._first, self._pace = False, _Pace()
            return
        pace = self._pace
        pace.steps += 1
        if self._samples and pace.own + pace.waited >= PACE_SECONDS:
            self._measured, self._pace = pace, _Pace()

    def readings(self) -> dict[str, float]:
        """What metrics are to say, new since the last call: seconds in collectives, and the slowest rank."""
        found = self._readings if self._board.rank == 0 else {}
        if self._samples:
            waited = self._waited
            found = found | {"communication_seconds": waited - self._waited_told}
            self._waited_told = waited
        self._readings = {}
        return found

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._profiles.close()
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        with suppress(RuntimeError):  # The store is gone.
            self._keep_profiles()

    def _watch(self) -> None:
        """Never waits for the others, nor for the store: it may be with a process that is stopped."""
        sampled = time.monotonic()
        while not self._stop.wait(_SAMPLE_SECONDS if self._samples else self._every):
            now = time.monotonic()
            if self._samples:
                self._sample(now - sampled)
            sampled, asked = now, self._asked
            unanswered = asked is not None and now - asked > self._patience
            if unanswered and self._observer.hang_timeout and self._standing().stalled:
                try:
                    self._observer.hung(self._write_stacks({0: "?"}))
                finally:
                    os._exit(EXIT_HUNG)

    def _talk(self) -> None:
        while not self._stop.wait(self._every):
            self._asked = time.monotonic()
            try:
                self._compare_paces()
                self._profiles.look(self._observer.profile_wanted() if self._board.rank == 0 else None)
                self._keep_profiles()
                if self._observer.hang_timeout:
                    self._look_for_a_hang()
            except RuntimeError:
                return  # The store has gone with rank 0: what was asked stays without an answer.
            self._asked = None

    def _sample(self, seconds: float) -> None:
        if self._phase == "other":
            return
        if waits_for_others(sys._current_frames().get(self._trainer)):
            self._waited += seconds
            self._pace.waited += seconds
        else:
            self._pace.own += seconds

    def _compare_paces(self) -> None:
        """Tell the others this rank's own time, and on rank 0 see who is slow."""
        pace, self._measured = self._measured, None
        if pace is None:
            return
        self._board.tell("pace", {"host": this_host(), "seconds": pace.own / pace.steps})
        if self._board.rank != 0:
            return
        paces = self._board.told("pace")
        if len(paces) < self._board.ranks:
            return
        slow = slowest({rank: each["seconds"] for rank, each in paces.items()})
        self._readings = {"slowest_rank": slow.rank, "slowest_rank_ratio": slow.ratio}
        if slow.is_slow and slow.rank != self._slow:
            host, seconds = paces[slow.rank]["host"], paces[slow.rank]["seconds"]
            what = "the same matmuls take" if self._probes else "its own part of a step takes"
            self._observer.warn(
                f"rank {slow.rank} (on {host}) is slow: {what} {seconds:.3g} s, "
                f"{slow.ratio:.2f} times the median, and the others wait for it"
            )
        self._slow = slow.rank if slow.is_slow else -1

    def _keep_profiles(self) -> None:
        written = self._profiles.written()
        if written is not None and written != self._kept:
            self._kept = written
            self._observer.keep([written])
            self._profiles.finished()
        made = self._profiles.made()
        if made is not None:
            self._observer.profiled(made)

    def _standing(self) -> Standing:
        """Where this rank is, and whether it moves."""
        begun = collectives_begun()
        if begun != self._collectives:
            self._collectives, self._moved = begun, time.monotonic()
        return Standing(
            this_host(), self._step, begun, self._phase == "step" and self._silent() > self._limit
        )

    @property
    def _limit(self) -> float:
        return self._observer.hang_timeout * (FIRST_STEP if self._first else 1.0)

    @property
    def _patience(self) -> float:
        return min(PATIENCE_SECONDS, 2 * self._observer.hang_timeout)

    def _silent(self) -> float:
        return time.monotonic() - self._moved

    def _look_for_a_hang(self) -> None:
        """Answer if another rank asks where this one is; ask if it is stalled itself."""
        standing = self._standing()
        now = self._board.number("round")
        if standing.stalled and now == self._round:
            now = self._board.raise_number("round", now)
        if now == self._round:
            return
        self._round = now
        self._board.tell("standing", [now, standing.word()])
        if not standing.stalled:
            return
        standings = self._answers()
        if all(each.stalled for each in standings.values()) and self._standing().stalled:
            self._end(standings)

    def _answers(self) -> dict[int, Standing]:
        """What all ranks say in this round, or those that do within the time in which any does that lives."""
        deadline = time.monotonic() + self._patience
        while True:
            words = self._board.told("standing").items()
            told = {rank: Standing.of(word) for rank, (of, word) in words if of == self._round}
            self._asked = time.monotonic()
            if len(told) == self._board.ranks or time.monotonic() > deadline or self._stop.wait(0.1):
                return told

    def _end(self, standings: dict[int, Standing]) -> NoReturn:
        """Write the stacks, tell of the hang on the first rank that answers, and end the process."""
        self._asked = None
        try:
            hang = self._write_stacks(hung_ranks(standings, self._board.ranks))
            first = min(standings)
            self._board.tell("written", True)
            if self._board.rank == first:
                self._wait_for("written", set(standings))
                self._observer.hung(hang)
                self._board.tell("over", True)
            else:
                self._wait_for("over", {first})
        finally:
            os._exit(EXIT_HUNG)

    def _write_stacks(self, hosts: dict[int, str]) -> Hang:
        """hosts: of the ranks that hung."""
        folder = self._folder / HANGS / f"step-{self._step + 1:08d}"
        hang = Hang(self._step + 1, self._silent(), hosts, self._board.ranks, folder)
        files = write_stacks(folder, self._board.rank, self._trainer)
        print(f"{hang}\n{files[0].read_text()}", file=sys.stderr, flush=True)
        self._observer.keep(files)
        return hang

    def _wait_for(self, topic: str, ranks: set[int]) -> None:
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline and not ranks <= self._board.told(topic).keys():
            time.sleep(0.1)
