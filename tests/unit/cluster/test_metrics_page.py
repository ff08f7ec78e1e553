"""docs/metrics.md lists every metric as it is declared."""

import pytest

from cluster.metrics import METRICS
from cluster.metrics_page import PAGE, tables, with_tables


def test_the_committed_tables_are_the_generated_ones() -> None:
    page = PAGE.read_text()
    assert page == with_tables(page), "run `make metrics`"


def test_every_metric_has_a_row() -> None:
    rows = [line for line in tables().splitlines() if line.startswith("| `")]
    assert len(rows) == len(METRICS)
    assert all(f"`{metric.exported}`" in row for metric, row in zip(METRICS, rows, strict=True))


def test_a_page_without_its_markers_is_not_written_over() -> None:
    with pytest.raises(ValueError, match="lacks"):
        with_tables("# Metrics\n")
