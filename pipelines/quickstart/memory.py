"""The most memory that each stage held at once, over all its processes."""

import contextlib
import json
import threading
from types import TracebackType

import psutil

from cluster.artifacts.storage import Storage
from cluster.connect import Cluster

PEAKS = "peak_memory.json"
_INTERVAL_SECONDS = 5.0
_RAY_PROCESSES = ("raylet", "gcs_server", "ray::", "ray/dashboard", "ray/_private")


class PeakMemory:
    """Samples, in a thread, the summed proportional set size of this process and all below it.

    Pages that processes share (libraries, the object store) are counted once. On a cluster that runs already,
    Ray's processes on this machine are not below us and are looked for by name.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._bytes = 0
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def take(self) -> int:
        """The peak in bytes since the last call, the present included."""
        self._sample()
        peak, self._bytes = self._bytes, 0
        return peak

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self._bytes = max(self._bytes, sum(_proportional_set_size(process) for process in self._processes()))

    def _processes(self) -> list[psutil.Process]:
        ours = psutil.Process()
        below = [ours, *ours.children(recursive=True)]
        if not self._cluster.joined:
            return below
        known = {process.pid for process in below}
        return below + [p for p in psutil.process_iter() if p.pid not in known and _is_ray(p)]


class StagePeaks:
    """The peak of every stage by the artifact that it made, in a file below the root.

    Kept as stages end, so that a run that goes on after an interruption knows of those before it.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._bytes: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            self._bytes = json.loads(storage.read(PEAKS))

    def keep(self, artifact: str, peak: int) -> None:
        """Write down the peak, in bytes, of the stage that made `artifact`."""
        self._bytes[artifact] = peak
        self._storage.write(PEAKS, json.dumps(self._bytes, indent=2).encode() + b"\n")

    def highest(self, artifacts: list[str]) -> int:
        """The highest of these artifacts' peaks, in bytes; 0 if none was measured."""
        return max((self._bytes.get(artifact, 0) for artifact in artifacts), default=0)


def _is_ray(process: psutil.Process) -> bool:
    try:
        command = " ".join(process.cmdline()[:3])
    except psutil.Error:
        return False
    return any(part in command for part in _RAY_PROCESSES)


def _proportional_set_size(process: psutil.Process) -> int:
    """Bytes of one process; 0 if it has ended. Systems without PSS give the resident set size."""
    try:
        full = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(full, "pss", full.rss))
