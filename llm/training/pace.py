"""How long each rank computes in a step, and who is slow.

All steps of a run take equally long, since every rank waits for the slowest. So the time of a rank is taken
without that in which it waits for others in a collective: the thread that watches looks where the one that
trains is, some times a second, and counts. On a GPU, where collectives run beside the program, that says
nothing. There each rank times the same matmuls now and then, between two steps: a GPU that is too hot, or
that somebody else uses, takes longer for them.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

import torch

SLOW = 1.25
"""Times the median from which on a rank is a straggler: less is within the noise."""
_IN_COLLECTIVES = (
    "distributed_c10d.py",
    "c10d_logger.py",
    "_functional_collectives.py",
    "_fsdp_collectives.py",  # That waits for one it has begun before, or copies what one takes or brings.
    "parallel/overlap.py",
)
_DEPTH = 3
"""Innermost frames that are looked at: a collective's wrappers are no deeper."""


_PROBE_SIZE, _PROBE_MATMULS = 4096, 8
"""2 ms of an H100 that does as it should."""


def probe_seconds(device: torch.device, size: int = _PROBE_SIZE) -> float:
    """Seconds that `device` takes for some bf16 matmuls, after what it is at has ended; the lower of two
    tries, for the first one finds it idle.
    """
    square = torch.ones(size, size, dtype=torch.bfloat16, device=device)
    tries = []
    for _ in range(2):
        _wait_for(device)
        began = time.perf_counter()
        for _ in range(_PROBE_MATMULS):
            square @ square
        _wait_for(device)
        tries.append(time.perf_counter() - began)
    return min(tries)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def waits_for_others(frame: FrameType | None) -> bool:
    """Whether a thread whose innermost frame this is is in a collective, or waits for the end of one."""
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_code.co_filename.endswith(_IN_COLLECTIVES):
            return True
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class Straggler:
    """The slowest rank."""

    rank: int
    ratio: float
    """Its own seconds a step over the median of all ranks'."""

    @property
    def is_slow(self) -> bool:
        return self.ratio >= SLOW


def slowest(seconds: Mapping[int, float]) -> Straggler:
    """By each rank's own seconds a step. Of an even number of ranks the median is the lower middle: of two,
    the faster is what the slower is compared with.
    """
    rank = max(seconds, key=lambda each: seconds[each])
    median = statistics.median_low(seconds.values())
    return Straggler(rank, seconds[rank] / median if median > 0 else 1.0)
