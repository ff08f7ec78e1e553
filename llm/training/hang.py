"""A step that does not end, and what is left behind for whoever looks for the reason.

Ranks take the same collectives in the same order, and one that has begun fewer than the others is what they
wait for:

    progress of a rank = (step, collectives begun)          hung are the ranks with the least of it

Where all have begun equally many, they wait in the same one: for the network, or a GPU that is stuck.
"""

import pickle
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist

CHECKPOINTS = "checkpoint"
"""Description of the process group in which checkpoints are written, beside the steps."""
HANGS = "hangs"
"""Folder with what hung steps left, in that of the run."""
_NAMED = 8
"""Ranks that a message names."""


@dataclass(frozen=True)
class Standing:
    """Where a rank is."""

    host: str
    step: int
    """Steps taken, and the one under way."""
    collectives: int
    """Begun since the process group was made."""
    stalled: bool
    """Whether nothing has moved for longer than it may."""

    @classmethod
    def of(cls, word: Mapping[str, Any]) -> Self:
        return cls(**word)

    def word(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Hang:
    """A step that made no progress."""

    step: int
    """The first is 1."""
    seconds: float
    """For how long."""
    hosts: dict[int, str]
    """Of the ranks that hung; of one that does not even answer, "?"."""
    ranks: int
    """In all."""
    folder: Path
    """Gets the stacks of this machine's ranks."""

    def __str__(self) -> str:
        silent = "?" in self.hosts.values()
        named = [f"{rank}" if host == "?" else f"{rank} (on {host})" for rank, host in self.hosts.items()]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        who = f"rank{'s' * (len(named) > 1)} {', '.join(named[:_NAMED])}{more}"
        if self.ranks == 1:
            reason = f"on {self.hosts[0]}"
        elif silent:
            reason = f"{who} {'do' if len(named) > 1 else 'does'} not answer"
        elif len(named) == self.ranks:
            reason = f"all {self.ranks} ranks wait in the same collective"
        else:
            reason = f"the others wait for {who}"
        return f"step {self.step} hung, no progress for {self.seconds:.0f} s: {reason}"


def hung_ranks(standings: Mapping[int, Standing], ranks: int) -> dict[int, str]:
    """Whom the others wait for: rank to host, "?" for those of which nothing was heard."""
    silent = {rank: "?" for rank in range(ranks) if rank not in standings}
    if silent:
        return silent
    least = min((each.step, each.collectives) for each in standings.values())
    return {rank: each.host for rank, each in standings.items() if (each.step, each.collectives) == least}


def this_host() -> str:
    """What messages call this machine."""
    return socket.gethostname()


def collectives_begun() -> int:
    """By this process, checkpoints apart; 0 without a process group, or with one that does not count."""
    if not dist.is_initialized():
        return 0
    count = 0
    for group in list(dist.distributed_c10d._world.pg_map):
        if group.group_desc == CHECKPOINTS:
            continue
        backends = {backend.name(): backend for backend in map(group._get_backend, group._device_types)}
        for backend in backends.values():
            try:
                count += backend._get_sequence_number_for_group()
            except RuntimeError:
                continue
    return count


def write_stacks(folder: Path, rank: int, training: int) -> list[Path]:
    """Write where every thread of this process is, the one that trains first, and what torch's flight
    recorder knows of the last collectives; returns the files, the stacks first.

    `torchfrtrace FOLDER --prefix flight-recorder-` compares the recordings of all ranks.

    training: identity of the thread that trains.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stacks = folder / f"rank-{rank}.txt"
    stacks.write_text(_stacks(rank, training))
    recorder = _flight_recorder()
    if recorder is None:
        return [stacks]
    recording = folder / f"flight-recorder-{rank}"
    recording.write_bytes(recorder)
    return [stacks, recording]


def _stacks(rank: int, training: int) -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    parts = [f"rank {rank} on {this_host()}, most recent call last\n"]
    for ident in sorted(frames, key=lambda each: each != training):
        role = ", which trains" if ident == training else ""
        parts.append(f"\nThread {names.get(ident, ident)}{role}:\n")
        parts += traceback.format_stack(frames[ident])
    return "".join(parts)


def _flight_recorder() -> bytes | None:
    """The last collectives of this process, pickled; None if there were none."""
    module = getattr(torch._C, "_distributed_c10d", None)
    for name in ("_dump_nccl_trace", "_dump_fr_trace"):
        dump = getattr(module, name, None)
        if dump is not None:
            recording: bytes = dump(includeCollectives=True, includeStackTraces=True, onlyActive=False)
            if pickle.loads(recording).get("entries"):
                return recording
    return None
