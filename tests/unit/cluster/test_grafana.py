"""The dashboard shows every metric, and asks Prometheus for nothing that is not there."""

import json
import re
from itertools import combinations

import pytest

from cluster.grafana import DASHBOARD, FILTERS, dashboard, queries, render, unit_shown
from cluster.metrics import METRICS, groups
from tests.unit.cluster.promql import SERIES, asked, check

PANELS = dashboard()["panels"]
CHARTS = [panel for panel in PANELS if panel["type"] == "timeseries"]


def test_the_committed_dashboard_is_the_generated_one() -> None:
    assert DASHBOARD.read_text() == render(), "run `make metrics`"


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: f"{chart['id']}-{chart['title']}")
def test_a_chart_asks_for_declared_metrics_with_labels_that_they_have(chart: dict) -> None:
    for target in chart["targets"]:
        found = check(target["expr"])
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= found.labels
    assert len({target["refId"] for target in chart["targets"]}) == len(chart["targets"])
    assert len({target["legendFormat"] for target in chart["targets"]}) == len(chart["targets"])


def test_every_metric_has_a_chart() -> None:
    shown = {
        SERIES[name]
        for chart in CHARTS
        for target in chart["targets"]
        for name in asked(target["expr"]).series
    }
    assert shown == set(METRICS)


def test_metrics_in_one_chart_have_one_unit() -> None:
    for one, other in combinations(METRICS, 2):
        if (one.group, one.panel) == (other.group, other.panel):
            assert unit_shown(one) == unit_shown(other), one.panel


def test_choices_that_are_used_exist_and_the_other_way_round() -> None:
    offered = {choice["name"] for choice in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS))) - {"__rate_interval"}
    assert used == offered == {"datasource", *FILTERS}
    for choice in dashboard()["templating"]["list"]:
        if choice["type"] == "query":
            names, label = re.fullmatch(
                r'label_values\({__name__=~"(.+)"}, (\w+)\)', choice["definition"]
            ).groups()
            assert label == choice["name"]
            assert set(names.split("|")) == {m.exported for m in METRICS if label in m.labels}


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert [panel["type"] for panel in PANELS].count("row") == len(groups())
    cells = [
        (x, y)
        for panel in PANELS
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_what_is_asked_of_each_kind() -> None:
    by_name = {metric.exported: metric for metric in METRICS}
    assert queries(by_name["ray_manta_training_loss"], filtered=False) == [
        ("max by (stage, run) (ray_manta_training_loss)", "loss")
    ]
    ((requests, _),) = queries(by_name["ray_manta_serving_requests_total"])
    assert requests == (
        'sum by (model, endpoint, status) (rate(ray_manta_serving_requests_total{model=~"$model"}'
        "[$__rate_interval]))"
    )
    first_token = queries(by_name["ray_manta_serving_time_to_first_token_seconds"])
    assert [name for _, name in first_token] == ["p50", "p95", "p99"]


@pytest.mark.parametrize(
    "wrong",
    [
        "sum by (model) (",
        "ray_manta_training_lost",
        "sum by (model) (ray_manta_training_loss)",
        "rate(ray_manta_training_loss[5m])",
        'ray_manta_units_done_total{run="a"}',
        "ray_manta_serving_request_seconds",
    ],
)
def test_the_check_can_fail(wrong: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check(wrong)
