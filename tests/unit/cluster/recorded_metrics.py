"""Stands for Ray's metrics: remembers what was emitted."""

from collections import defaultdict
from types import ModuleType
from typing import Any

import pytest

from cluster.metrics import Metric


class Recorded:
    """Values by name and labels, checked as Ray checks them: the labels must be those declared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, prometheus: ModuleType) -> None:
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)
        self.kinds: dict[str, str] = {}
        monkeypatch.setattr(prometheus, "_instrument", lambda metric, in_replica: _Instrument(self, metric))

    def add(self, metric: Metric, value: float, tags: dict[str, str]) -> None:
        assert tags.keys() == set(metric.labels), f"{metric.emitted} has the labels {metric.labels}"
        self.kinds[metric.emitted] = metric.kind
        values = self._values[metric.emitted, tuple(sorted(tags.items()))]
        if metric.kind == "histogram":
            values.append(value)
        else:
            values[:] = [value + sum(values) if metric.kind == "counter" else value]

    def series(self, name: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of a counter or gauge."""
        return [(dict(tags), values[0]) for (known, tags), values in self._values.items() if known == name]

    def total(self, name: str) -> float:
        """Sum over all labels; 0 if nothing was emitted."""
        return sum(value for _, value in self.series(name))

    def observations(self, name: str) -> list[float]:
        """What a histogram was given."""
        return [value for (known, _), values in self._values.items() if known == name for value in values]

    def forget(self) -> None:
        """As if nothing had been emitted."""
        self._values.clear()
        self.kinds.clear()

    def names(self) -> set[str]:
        """Of everything emitted."""
        return set(self.kinds)


class _Instrument:
    def __init__(self, recorded: Recorded, metric: Metric) -> None:
        self._recorded, self._metric = recorded, metric

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._add("gauge", value, tags)

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray refuses it"
        self._add("counter", value, tags)

    def observe(self, value: float, tags: dict[str, str]) -> None:
        self._add("histogram", value, tags)

    def _add(self, kind: str, value: float, tags: dict[str, Any]) -> None:
        assert self._metric.kind == kind
        self._recorded.add(self._metric, value, tags)
