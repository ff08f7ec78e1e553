"""Units are counted once each, however often the runner hears of them."""

from contextlib import closing
from unittest import mock

import pytest

from cluster import prometheus
from pipelines import unit_meter
from pipelines.unit_meter import UnitMeter, input_bytes
from tests.unit.cluster.recorded_metrics import Recorded

WORK = {"work": "code: read"}


def test_units_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch, prometheus)
    missing = {"a": {"bytes": 100}, "b": {"pieces": [{"bytes": 20}, {"bytes": 3}]}, "c": {"range": 1}}
    with closing(UnitMeter("code: read", missing)) as meter:
        assert recorded.series("manta_units_remaining") == [(WORK, 3)]
        meter.done(["a"])
        meter.retried(1)
        meter.retried(0)
        meter.done(["before", "a", "b"])  # As the ledger lists them, those of an earlier run included.
        meter.failed(1)
    counted = {
        name: recorded.series(f"manta_units_{name}") for name in ("done", "bytes", "retried", "failed")
    }
    expected = {"done": 2, "bytes": 123, "retried": 1, "failed": 1}
    assert counted == {name: [(WORK, value)] for name, value in expected.items()}
    assert recorded.series("manta_units_remaining") == [(WORK, 1)]
    assert recorded.total("manta_units_per_s") > 0


def test_rates_are_of_this_run_and_by_input_where_its_size_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorded(monkeypatch, prometheus)
    clock = mock.Mock(return_value=100.0)
    monkeypatch.setattr(unit_meter, "time", mock.Mock(monotonic=clock))
    with closing(UnitMeter("code: read", {"a": {"bytes": 3_000_000}, "b": {"bytes": 1_000_000}})) as meter:
        assert meter.rate() == {}
        clock.return_value = 102.0
        meter.done(["before", "a", "b"])
        meter.retried(1)
        assert meter.rate() == {"MB_per_s": 2.0}
        assert meter.summary() == {
            "done": 2,
            "retried": 1,
            "failed": 0,
            "bytes": 4_000_000,
            "seconds": 2.0,
            "per_s": 1.0,
            "bytes_per_s": 2_000_000.0,
        }
    with closing(UnitMeter("code: find duplicates", {"a": {"range": 0}})) as meter:
        clock.return_value = 106.0
        meter.done(["a"])
        assert meter.rate() == {"units_per_s": 0.25}


def test_the_size_of_a_unit_is_what_its_plan_says() -> None:
    assert input_bytes({"file": "part-0.parquet", "first": 0, "last": 2, "bytes": 7}) == 7
    assert input_bytes({"pieces": [{"bytes": 3}, {"bytes": 4, "start": 0}]}) == 7
    assert input_bytes({}) == input_bytes({"range": 3}) == 0
