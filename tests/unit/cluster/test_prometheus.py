"""The emitter sends what is declared, and keeps gauges alive for as long as it is open."""

import time

import pytest

from cluster import prometheus
from cluster.prometheus import Emitter
from tests.unit.cluster.recorded_metrics import Recorded

RUN = {"stage": "pretrain", "run": "base-1"}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.setattr(prometheus, "_REPEAT_SECONDS", 0.01)
    return Recorded(monkeypatch, prometheus)


def test_of_a_record_the_declared_gauges_are_sent(recorded: Recorded) -> None:
    record = {"step": 3, "loss": 2.5, "result": {"a": 1}, "fatal": "none", "undeclared": 7.0, "mfu": None}
    with Emitter("training", RUN) as emitter:
        emitter.set_declared(record)
    assert recorded.series("manta_training_loss") == [(RUN, 2.5)]
    assert recorded.names() == {"manta_training_step", "manta_training_loss"}


def test_counters_add_up_by_label_and_never_by_nothing(recorded: Recorded) -> None:
    with Emitter("serving", {"model": "m"}) as emitter:
        emitter.count("requests", endpoint="chat", status="200")
        emitter.count("requests", 2, endpoint="chat", status="200")
        emitter.count("requests", endpoint="chat", status="429")
        emitter.count("generated_tokens", 0)
        emitter.observe("request_seconds", 0.5, endpoint="chat")
    counts = {labels["status"]: value for labels, value in recorded.series("manta_serving_requests")}
    assert counts == {"200": 3, "429": 1}
    assert recorded.observations("manta_serving_request_seconds") == [0.5]
    assert recorded.series("manta_serving_generated_tokens") == []


def test_a_gauge_is_repeated_until_the_emitter_is_closed(recorded: Recorded) -> None:
    """Ray forgets a gauge that is not set again."""
    emitter = Emitter("training", RUN)
    emitter.set("loss", 2.5)
    recorded.forget()
    deadline = time.monotonic() + 10
    while not recorded.series("manta_training_loss"):
        assert time.monotonic() < deadline, "it was not set again"
        time.sleep(0.01)
    emitter.close()
    recorded.forget()
    time.sleep(0.05)
    assert recorded.names() == set()


def test_what_is_not_declared_is_refused(recorded: Recorded) -> None:
    with Emitter("training", RUN) as emitter:
        for act in (emitter.set, emitter.count, emitter.observe):
            with pytest.raises(KeyError):
                act("tokens_per_fortnight", 1)
