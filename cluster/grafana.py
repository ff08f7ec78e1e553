"""The Grafana dashboard, made from the declarations so that it cannot differ from them.

    python -m cluster.grafana     writes infra/grafana/manta.json

One row a group, one chart a panel. Processes and sessions are merged: a driver that was started again goes on
with the same line.
"""

import json
from pathlib import Path
from typing import Any

from cluster.metrics import METRICS, Metric, groups

DASHBOARD = Path(__file__).resolve().parents[1] / "infra" / "grafana" / "manta.json"

TITLES = {
    "units": "Data: units of work",
    "training": "Training",
    "prompts": "Preferences and evaluation",
    "rlhf": "RLHF",
    "serving": "Serving",
}
FILTERS = {"work": "Work", "run": "Run", "model": "Model"}
"""Labels that the reader of the dashboard chooses by, and what the choices are called."""

_WIDTH, _COLUMNS, _HEIGHT = 24, 3, 8  # Grafana's grid is 24 wide.
_QUANTILES = (0.5, 0.95, 0.99)
_UNITS = {"seconds": "s", "bytes": "bytes", "bytes/s": "Bps", "share": "percentunit", "": "short"}
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(metrics: tuple[Metric, ...] = METRICS) -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for group in groups(metrics):
        charts: dict[str, list[Metric]] = {}
        for metric in metrics:
            if metric.group == group:
                charts.setdefault(metric.panel, []).append(metric)
        panels.append(_row(TITLES[group], len(panels) + 1, top))
        top += 1
        for place, (title, shown) in enumerate(charts.items()):
            panels.append(_chart(title, shown, len(panels) + 1, place, top))
        top += -(-len(charts) // _COLUMNS) * _HEIGHT
    return {
        "uid": "manta",
        "title": "Manta",
        "description": "Made by `python -m cluster.grafana` from cluster/metrics.py.",
        "tags": ["manta", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_choice_of_source(), *_choices(metrics)]},
        "annotations": {"list": []},
        "panels": panels,
    }


def queries(metric: Metric, filtered: bool = True) -> list[tuple[str, str]]:
    """(PromQL expression, what to call its lines beside their labels) of what a chart shows of a metric.

    Gauges as they are, counters as a rate, histograms as quantiles; processes are merged.

    filtered: by the dashboard's choices.
    """
    chosen = ", ".join(f'{label}=~"${label}"' for label in metric.labels if label in FILTERS)
    selector = f"{{{chosen}}}" if filtered and chosen else ""
    labels = ", ".join(metric.labels)
    if metric.kind == "gauge":
        return [(f"{metric.combine} by ({labels}) ({metric.exported}{selector})", metric.name)]
    if metric.kind == "counter":
        return [(f"sum by ({labels}) (rate({metric.exported}{selector}[$__rate_interval]))", metric.name)]
    rates = f"sum by (le, {labels}) (rate({metric.exported}_bucket{selector}[$__rate_interval]))"
    return [(f"histogram_quantile({quantile}, {rates})", f"p{quantile * 100:g}") for quantile in _QUANTILES]


def unit_shown(metric: Metric) -> str:
    """The unit on a chart's axis: a counter is shown as a rate."""
    return f"{metric.unit}/s" if metric.kind == "counter" else metric.unit


def render() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=2) + "\n"


def _row(title: str, number: int, top: int) -> dict[str, Any]:
    place = {"x": 0, "y": top, "w": _WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": title, "gridPos": place, "collapsed": False, "panels": []}


def _chart(title: str, metrics: list[Metric], number: int, place: int, top: int) -> dict[str, Any]:
    width = _WIDTH // _COLUMNS
    lines = [(metric, *query) for metric in metrics for query in queries(metric)]
    unit = unit_shown(metrics[0])
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "description": "\n".join(f"{metric.name}: {metric.help}." for metric in metrics),
        "datasource": _SOURCE,
        "gridPos": {
            "x": place % _COLUMNS * width,
            "y": top + place // _COLUMNS * _HEIGHT,
            "w": width,
            "h": _HEIGHT,
        },
        "targets": [
            {
                "refId": f"Q{index}",
                "datasource": _SOURCE,
                "expr": expression,
                "legendFormat": " ".join(
                    [*(f"{{{{{label}}}}}" for label in metric.labels), *([name] if len(lines) > 1 else [])]
                ),
            }
            for index, (metric, expression, name) in enumerate(lines)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": _UNITS.get(unit, f"suffix: {unit}"),
                "custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 0, "showPoints": "auto"},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "none"},
        },
    }


def _choice_of_source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _choices(metrics: tuple[Metric, ...]) -> list[dict[str, Any]]:
    """A choice of values for each label in `FILTERS`, any number of them, all by default."""
    choices = []
    for label, title in FILTERS.items():
        names = "|".join(metric.exported for metric in metrics if label in metric.labels)
        query = f'label_values({{__name__=~"{names}"}}, {label})'
        choices.append(
            {
                "name": label,
                "label": title,
                "type": "query",
                "datasource": _SOURCE,
                "definition": query,
                "query": {"query": query, "refId": label},
                "refresh": 2,  # Whenever the time range changes.
                "sort": 1,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            }
        )
    return choices


if __name__ == "__main__":
    DASHBOARD.parent.mkdir(parents=True, exist_ok=True)
    DASHBOARD.write_text(render())
    print(f"wrote {DASHBOARD}")
