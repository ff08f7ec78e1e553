"""Reads Ray's Prometheus endpoint, as Prometheus does."""

import threading
import time
import urllib.request
from collections import defaultdict
from types import TracebackType
from typing import Any, Self

import ray
from prometheus_client.parser import text_string_to_metric_families

REPORT_EVERY_SECOND = {"_system_config": {"metrics_report_interval_ms": 1000}}
"""Options of `start_local`: Ray's default is ten seconds."""

Labels = frozenset[tuple[str, str]]


def scrape() -> dict[str, list[tuple[dict[str, str], float]]]:
    """(labels, value) of every series of ours on this node, by name."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_manta_"):
                found[sample.name].append((sample.labels, sample.value))
    return found


class Watch:
    """Scrapes twice a second for the length of a `with` block and remembers what it saw."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def values(self, name: str, **labels: str) -> list[float]:
        """All values of a metric that were seen with these labels, in order."""
        return [value for found, value in self._seen[f"ray_manta_{name}"] if labels.items() <= found.items()]

    def last(self, name: str, **labels: str) -> float:
        """The value that was seen last."""
        values = self.values(name, **labels)
        assert values, f"{name} was never seen with {labels}; there were {sorted(self._seen)}"
        return values[-1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        time.sleep(2.5)  # What was emitted last takes two reports to appear.
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.wait(0.5):
            for name, samples in scrape().items():
                self._seen[name] += samples


def wait_for(condition: Any, what: str, seconds: float = 20) -> None:
    """Until it is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
