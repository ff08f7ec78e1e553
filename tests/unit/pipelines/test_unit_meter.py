"""Units are counted once each, however often the runner hears of them."""

import pytest

from cluster import prometheus
from pipelines.unit_meter import UnitMeter, input_bytes
from tests.unit.cluster.recorded_metrics import Recorded

WORK = {"work": "code: read"}


def test_units_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch, prometheus)
    missing = {"a": {"bytes": 100}, "b": {"pieces": [{"bytes": 20}, {"bytes": 3}]}, "c": {"range": 1}}
    with UnitMeter("code: read", missing) as meter:
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


def test_the_size_of_a_unit_is_what_its_plan_says() -> None:
    assert input_bytes({"file": "part-0.parquet", "first": 0, "last": 2, "bytes": 7}) == 7
    assert input_bytes({"pieces": [{"bytes": 3}, {"bytes": 4, "start": 0}]}) == 7
    assert input_bytes({}) == input_bytes({"range": 3}) == 0
