"""What the unit runner measures: for Ray's Prometheus endpoint, its progress and run.json. Driver side."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.prometheus import Emitter


class UnitMeter:
    """Counts units of `work` while they are being done, until `close`.

    missing: payload of each unit that is not done yet, by id.
    """

    def __init__(self, work: str, missing: Mapping[str, dict[str, Any]]) -> None:
        self._missing = {unit: input_bytes(payload) for unit, payload in missing.items()}
        self._finished = self._bytes = self._retried = self._failed = 0
        self._began = time.monotonic()
        self._emitter = Emitter("units", {"work": work})
        self._emitter.set("remaining", len(self._missing))

    def done(self, units: Iterable[str]) -> None:
        """Units that are committed; those counted before, or done before this run, are ignored."""
        new = [unit for unit in units if unit in self._missing]
        if new:
            self._emitter.count("done", len(new))
            size = sum(self._missing.pop(unit) for unit in new)
            self._emitter.count("bytes", size)
            self._finished += len(new)
            self._bytes += size
            self._emitter.set("per_s", self._finished / self._seconds)
            self._emitter.set("remaining", len(self._missing))

    def retried(self, units: int) -> None:
        """Attempts that failed and will be made again."""
        self._retried += units
        self._emitter.count("retried", units)

    def failed(self, units: int) -> None:
        """Units that are given up."""
        self._failed += units
        self._emitter.count("failed", units)

    def rate(self) -> dict[str, float]:
        """How fast this run works, as a field to show: by input where the plan knows its size."""
        if not self._finished:
            return {}
        if self._bytes:
            return {"MB_per_s": self._bytes / 1e6 / self._seconds}
        return {"units_per_s": self._finished / self._seconds}

    def summary(self) -> dict[str, float]:
        """The same numbers as the metrics', for run.json."""
        return {
            "done": self._finished,
            "retried": self._retried,
            "failed": self._failed,
            "bytes": self._bytes,
            "seconds": self._seconds,
            "per_s": self._finished / self._seconds,
            "bytes_per_s": self._bytes / self._seconds,
        }

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._began, 1e-9)

    def close(self) -> None:
        """Let the gauges fade."""
        self._emitter.close()


def input_bytes(payload: dict[str, Any]) -> int:
    """Bytes that a unit reads, as far as its plan says: of a piece, or of all its pieces."""
    return int(sum(piece.get("bytes", 0) for piece in payload.get("pieces", [payload])))
