"""A look into some steps of a run under way: what CPU and GPU did, as a Chrome trace.

A request comes to rank 0 whenever the user likes. It is traced from its next step on; where all ranks are, in
the same steps: rank 0 names the first when all have heard of the request, and no rank is further than that,
since each waits for the others in every step.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from llm.training.noticeboard import Noticeboard

PROFILES = "profiles"
"""Folder with the traces, in that of the run."""


@dataclass(frozen=True)
class ProfileRequest:
    """What the user asks for."""

    id: str
    steps: int
    all_ranks: bool

    @classmethod
    def of(cls, word: Mapping[str, Any]) -> Self:
        """Raises TypeError if it is none."""
        return cls(**word)

    def word(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Profile:
    """What was made for a request."""

    request: ProfileRequest
    first: int
    """Step, from 1; as in the name of the folder."""
    folder: Path
    """Has `rank-N.json.gz`, each of which appears whole."""


class ProfileWindow:
    """The requests of one rank: `look` and `finished` are for a thread beside the training, the rest for that
    which trains.
    """

    def __init__(self, board: Noticeboard, folder: Path, device: torch.device) -> None:
        self._board, self._folder = board, folder / PROFILES
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._request: ProfileRequest | None = None
        self._taken: set[str] = set()
        self._first = 0
        self._profiler: profile | None = None
        self._step: record_function | None = None
        self._written: Path | None = None

    def look(self, wanted: ProfileRequest | None) -> None:
        """Hear of a request; `wanted` is what rank 0 is asked for."""
        if self._board.rank == 0 and wanted is not None and wanted.id not in self._taken:
            self._board.tell("profile", wanted.word())
        word = self._board.told_by(0, "profile")
        if self._request is not None or word is None or word["id"] in self._taken:
            return
        request = ProfileRequest.of(word)
        self._taken.add(request.id)
        self._board.tell("profile-heard", request.id)
        if request.all_ranks or self._board.rank == 0:
            self._request = request

    def begins(self, step: int) -> None:
        """A step begins: start to trace, go on, or end."""
        request = self._request
        if request is None or self._written is not None:
            return
        if self._profiler is None and self._starts_at(request, step):
            self._first = step
            self._profiler = profile(activities=self._activities)
            self._profiler.start()
        if self._profiler is not None:
            self._end_step()
            if step == self._first + request.steps:
                self.close()
            else:
                self._step = record_function(f"step {step + 1}")
                self._step.__enter__()

    def close(self) -> None:
        """End the trace under way, if there is one, and write it."""
        if self._profiler is None:
            return
        self._end_step()
        self._profiler.stop()
        folder = self._folder / f"step-{self._first + 1:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"rank-{self._board.rank}.json.gz"
        partial = folder / f".partial-{name}"
        self._profiler.export_chrome_trace(str(partial))
        os.replace(partial, folder / name)
        self._profiler, self._written = None, folder / name

    def written(self) -> Path | None:
        """The trace that `finished` is to be told of, when it is where it is to be kept."""
        return self._written

    def finished(self) -> None:
        """This rank's trace is kept."""
        assert self._request is not None
        self._board.tell("profiled", self._request.id)
        if self._board.rank != 0:
            self._request = self._written = None

    def made(self) -> Profile | None:
        """On rank 0, once: what all ranks have made."""
        request, written = self._request, self._written
        if self._board.rank != 0 or request is None or written is None:
            return None
        told = list(self._board.told("profiled").values())
        if told.count(request.id) < (self._board.ranks if request.all_ranks else 1):
            return None
        self._request = self._written = None
        return Profile(request, self._first + 1, written.parent)

    def _starts_at(self, request: ProfileRequest, step: int) -> bool:
        if not request.all_ranks:
            return True
        agreed = self._board.told_by(0, "profile-first")
        if agreed is not None and agreed[0] == request.id:
            return bool(step >= agreed[1])
        heard = list(self._board.told("profile-heard").values())
        if self._board.rank == 0 and heard.count(request.id) == self._board.ranks:
            self._board.tell("profile-first", [request.id, step + 1])
        return False

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
