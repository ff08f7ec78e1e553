"""The most memory that a run held at once, over all its processes."""

import threading
from types import TracebackType

import psutil

from cluster.connect import Cluster

_INTERVAL_SECONDS = 5.0
_RAY_PROCESSES = ("raylet", "gcs_server", "ray::", "ray/dashboard", "ray/_private")


class PeakMemory:
    """Samples, in a thread, the summed proportional set size of this process and all below it.

    Pages that processes share (libraries, the object store) are counted once. On a cluster that runs already,
    Ray's processes on this machine are not below us and are looked for by name.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.bytes = 0
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

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            self.bytes = max(
                self.bytes, sum(_proportional_set_size(process) for process in self._processes())
            )

    def _processes(self) -> list[psutil.Process]:
        ours = psutil.Process()
        below = [ours, *ours.children(recursive=True)]
        if not self._cluster.joined:
            return below
        known = {process.pid for process in below}
        return below + [p for p in psutil.process_iter() if p.pid not in known and _is_ray(p)]


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
