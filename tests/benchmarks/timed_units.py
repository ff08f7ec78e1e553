"""`manta COMMAND`, and what each unit of work took: a line of JSON a unit, written by the actor that did it.

python -m tests.benchmarks.timed_units FILE COMMAND [OPTIONS]
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

import pipelines.units
from llm.tokenizer.documents import DocumentEncoder
from pipelines.cli import leave, run
from pipelines.unit_actor import Status, UnitActor


@dataclass(frozen=True)
class UnitTime:
    """One attempt at a unit, from before it was written down until it was committed."""

    unit: str
    actor: int
    """Id of its process."""
    began: float
    """By `time.time`, like `ended`: actors are compared with each other."""
    ended: float
    cpu_began: float
    """CPU time of all threads of the actor by then: some may work on another unit."""
    cpu_ended: float
    machine_began: float
    machine_ended: float
    """CPU time of the whole machine by then, all processes together."""
    encoding: float
    """Seconds in which the actor's encoder has been at work by the unit's end, 0 if it has none."""
    peak_bytes: int
    """The most memory that the actor has held by then, mapped files included."""


def manta(*arguments: str, times: Path) -> list[UnitTime]:
    """Run a command in a process of its own; its units in the order in which they began."""
    command = [sys.executable, "-m", "tests.benchmarks.timed_units", str(times), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: manta {arguments[0]} ended with {done.returncode}:\n{done.stdout}")
    units = [UnitTime(**json.loads(line)) for line in times.read_text().splitlines()]
    return sorted(units, key=lambda each: each.began)


def timed(file: Path) -> type[UnitActor]:
    """The unit runner's actor, which appends to `file`."""

    class TimedActor(UnitActor):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._encoding = _encoding_timed()

        def _run(self, id: str, payload: str, attempt: int) -> Status:
            began, cpu, machine = time.time(), time.process_time(), _machine_seconds()
            status = super()._run(id, payload, attempt)
            unit = UnitTime(
                id,
                os.getpid(),
                began,
                time.time(),
                cpu,
                time.process_time(),
                machine,
                _machine_seconds(),
                self._encoding[0],
                _peak_bytes(),
            )
            with open(file, "a") as stream:
                stream.write(json.dumps(asdict(unit)) + "\n")
            return status

    return TimedActor


def _encoding_timed() -> list[float]:
    """From now on, the seconds that this process has spent in `DocumentEncoder.encode`, in a list of one."""
    encode, spent, depth = DocumentEncoder.encode, [0.0], [0]

    def timed_encode(self: DocumentEncoder, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        depth[0] += 1  # it calls itself
        began = time.perf_counter()
        try:
            return encode(self, texts)
        finally:
            depth[0] -= 1
            spent[0] += 0.0 if depth[0] else time.perf_counter() - began

    DocumentEncoder.encode = timed_encode  # type: ignore[method-assign, misc]
    return spent


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    pipelines.units.UnitActor = timed(Path(sys.argv[1]).absolute())
    leave(run(sys.argv[2:]))
