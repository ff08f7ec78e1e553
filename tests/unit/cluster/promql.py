"""What a PromQL expression asks for, by a parser that is not ours."""

from dataclasses import dataclass, field
from typing import Any

import promql_parser

from cluster.metrics import METRICS

SERIES = {
    series: metric
    for metric in METRICS
    for series in (
        [f"{metric.exported}_{suffix}" for suffix in ("bucket", "sum", "count")]
        if metric.kind == "histogram"
        else [metric.exported]
    )
}
"""Every series that Prometheus can have of ours, and the metric that it belongs to."""


@dataclass
class Asked:
    """Names of series, labels that are matched or grouped by, and names of functions, in one expression."""

    series: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)


def asked(expression: str) -> Asked:
    """Raises ValueError if Prometheus could not parse the expression."""
    found = Asked()
    _visit(promql_parser.parse(expression.replace("$__rate_interval", "1m")), found)
    return found


def check(expression: str) -> Asked:
    """The same, after a check that there are such series with such labels, and no rates of gauges."""
    found = asked(expression)
    assert found.series, f"{expression} asks for nothing"
    assert found.series <= SERIES.keys(), f"{expression}: no metric is called {found.series - SERIES.keys()}"
    metrics = [SERIES[name] for name in found.series]
    for label in found.labels - {"le"}:
        assert all(label in metric.labels for metric in metrics), f"{expression}: no label {label}"
    if found.functions & {"rate", "increase"}:
        assert all(metric.kind != "gauge" for metric in metrics), f"{expression}: the rate of a gauge"
    if "le" in found.labels:
        assert all(name.endswith("_bucket") for name in found.series), f"{expression}: not a histogram"
    return found


def _visit(node: Any, found: Asked) -> None:
    kind = type(node).__name__
    if kind == "VectorSelector":
        found.series.add(node.name)
        found.labels |= {matcher.name for matcher in node.matchers.matchers}
    elif kind == "MatrixSelector":
        _visit(node.vector_selector, found)
    elif kind == "AggregateExpr":
        found.labels |= set(node.modifier.labels) if node.modifier else set()
        _visit(node.expr, found)
    elif kind == "Call":
        found.functions.add(node.func.name)
        for argument in node.args:
            _visit(argument, found)
    elif kind == "BinaryExpr":
        _visit(node.lhs, found)
        _visit(node.rhs, found)
    elif kind in ("ParenExpr", "UnaryExpr", "SubqueryExpr"):
        _visit(node.expr, found)
    else:
        assert kind in ("NumberLiteral", "StringLiteral"), f"a {kind} is not looked into"
