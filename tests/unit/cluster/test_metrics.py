"""Declarations that Ray and Prometheus take as they are."""

import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.metrics import METRICS, Metric, declared

ROOT = Path(__file__).resolve().parents[3]
RESERVED = {"le", "quantile", "job", "instance", "deployment", "replica", "application", "route"}
"""Labels that Prometheus, Ray or Ray Serve gives series itself."""


def test_names_are_unique_and_all_that_prometheus_takes() -> None:
    assert max(Counter(metric.exported for metric in METRICS).values()) == 1
    assert max(Counter((metric.group, metric.name) for metric in METRICS).values()) == 1
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.emitted)
        assert not re.search(r"_(total|bucket|sum|count)$", metric.emitted), "Prometheus adds it itself"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.emitted)
def test_every_declaration_is_whole(metric: Metric) -> None:
    assert metric.help[0].isupper()
    assert not metric.help.endswith(".")
    assert metric.labels
    assert not set(metric.labels) & RESERVED
    assert all(re.fullmatch(r"[a-z][a-z_]*", label) for label in metric.labels)
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert all(0 < lower < upper for lower, upper in pairwise(metric.buckets))
    for ending, unit in (("_seconds", "seconds"), ("bytes", "bytes"), ("tokens_per_s", "tokens/s")):
        assert not metric.name.endswith(ending) or metric.unit == unit


def test_an_unknown_group_is_named_with_those_there_are() -> None:
    with pytest.raises(KeyError, match="'sewing'; groups are units, training, prompts, rlhf, serving"):
        declared("sewing")


def test_declarations_load_without_ray() -> None:
    code = "import cluster.metrics, cluster.prometheus, sys; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
