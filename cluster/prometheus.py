"""Send declared metrics to Ray's Prometheus endpoints: every node has one, and the raylet knows its port.

Seen with Ray 2.60: a process hands each value of a gauge to its node once, and the node forgets it two report
intervals later (20 s by default). What is set less often comes and goes. So the latest values are set again
once a second for as long as a run lasts, and fade when it has ended.
"""

import threading
from collections.abc import Mapping
from functools import cache
from types import TracebackType
from typing import Any, Self

from cluster.metrics import Metric, declared

_REPEAT_SECONDS = 1.0  # Ray reports at most once a second.


class Emitter:
    """Sends one group's metrics, with the same labels, for the length of a `with` block or until `close`.

    Args:
        group: of `cluster.metrics`.
        labels: values of the labels that all metrics of the group have.
        in_replica: called in a replica of Ray Serve, which adds its deployment, replica and application.

    Methods raise KeyError for a metric that is not declared.
    """

    def __init__(self, group: str, labels: Mapping[str, str], in_replica: bool = False) -> None:
        self._group, self._metrics = group, declared(group)
        self._labels, self._in_replica = dict(labels), in_replica
        self._gauges: dict[str, float] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._repeater = threading.Thread(target=self._repeat, name=f"{group}-metrics", daemon=True)
        self._repeater.start()

    def set(self, name: str, value: float) -> None:
        """What a gauge measures now."""
        with self._lock:
            self._gauges[name] = value
            self._instrument(name).set(value, self._labels)

    def set_declared(self, record: Mapping[str, Any]) -> None:
        """Set every gauge of the group that `record` has a number for; the rest of it is for others."""
        for name, value in record.items():
            metric = self._metrics.get(name)
            if metric is not None and metric.kind == "gauge" and isinstance(value, int | float):
                self.set(name, value)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter; `labels` are those that it has beyond the group's."""
        if amount > 0:  # Ray refuses 0.
            self._instrument(name).inc(amount, self._labels | labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count a value in a histogram."""
        self._instrument(name).observe(value, self._labels | labels)

    def close(self) -> None:
        """Let the gauges fade."""
        self._closed.set()
        self._repeater.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repeat(self) -> None:
        while not self._closed.wait(_REPEAT_SECONDS):
            with self._lock:
                for name, value in self._gauges.items():
                    self._instrument(name).set(value, self._labels)

    def _instrument(self, name: str) -> Any:
        return _instrument(self._metrics[name], self._in_replica)


@cache
def _instrument(metric: Metric, in_replica: bool) -> Any:
    """Ray's object for a metric; one a process, whatever runs in it."""
    if in_replica:
        from ray.serve import metrics as ray_metrics
    else:
        from ray.util import metrics as ray_metrics

    text = f"{metric.help} ({metric.unit})" if metric.unit else metric.help
    if metric.kind == "histogram":
        return ray_metrics.Histogram(metric.emitted, text, list(metric.buckets), metric.labels)
    kinds = {"counter": ray_metrics.Counter, "gauge": ray_metrics.Gauge}
    return kinds[metric.kind](metric.emitted, text, metric.labels)
