"""The unit runner on a private Ray: units that fail, kill their actor, want too much memory, are not ours."""

import os

import pytest
import ray

from cluster.artifacts.draft import Draft
from cluster.artifacts.lease import LeaseLost
from cluster.artifacts.store import ArtifactStore
from cluster.connect import start_local
from cluster.errors import UserError
from pipelines.unit_actor import InputError
from pipelines.unit_config import UnitsConfig
from pipelines.units import Unit, run_units


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    start_local(num_cpus=3)
    yield
    ray.shutdown()


class FaultyWorker:
    """A worker whose units fail as they are told; attempts leave a mark each."""

    def __init__(self, marks):
        self.marks = marks

    def run(self, unit_id, payload):
        attempt = len(list(self.marks.glob(f"{unit_id}-*")))
        (self.marks / f"{unit_id}-{attempt}").touch()
        if attempt < payload.get("fails", 0):
            raise OSError(f"attempt {attempt}")
        if payload.get("bad"):
            raise InputError("data.txt:7: bad")
        if payload.get("kills"):
            os._exit(1)
        return {"attempt": attempt}


def begin(tmp_path) -> Draft:
    store = ArtifactStore(tmp_path / "root")
    started = store.begin(kind="corpora", name="a", stage="made", logic_version=1, what={}, inputs={})
    assert isinstance(started, Draft)
    return started


@pytest.fixture
def draft(tmp_path):
    started = begin(tmp_path)
    yield started
    started.close()


def test_units_of_a_run_that_was_taken_over_are_left_alone(draft, tmp_path):
    """Its driver was paused, say, and another has begun the same."""
    marks = tmp_path / "marks"
    marks.mkdir()
    taker = begin(tmp_path)
    assert taker.folder == draft.folder
    with pytest.raises(LeaseLost, match="has taken this run over"):
        run_units(
            [Unit("a", {}), Unit("bad", {"bad": True})],
            FaultyWorker,
            {"marks": marks},
            draft=draft,
            config=UnitsConfig(workers=1, max_failed_units=2),
            title="taken",
        )
    assert list(marks.iterdir()) == []
    assert draft.ledger.folder.files() == {}, "neither records nor a quarantine"
    taker.close()


def test_units_are_tried_a_finite_number_of_times(draft, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    units = [
        Unit("once", {"fails": 1}),
        Unit("never", {"fails": 9}),
        Unit("bad", {"bad": True}),
        Unit("good", {}),
    ]
    options = {"draft": draft, "title": "faults"}
    with pytest.raises(UserError, match="2 of 4 units failed") as raised:
        run_units(units, FaultyWorker, {"marks": marks}, config=UnitsConfig(workers=2), **options)
    assert "never: OSError: attempt 2" in str(raised.value)
    assert "bad: data.txt:7: bad" in str(raised.value)
    assert sorted(path.name for path in marks.iterdir()) == [
        "bad-0", "good-0", "never-0", "never-1", "never-2", "once-0", "once-1",
    ]  # fmt: skip
    assert draft.ledger.attempts(draft.run_id) == {"bad": 1, "good": 1, "never": 3, "once": 2}
    facts = draft.facts["units"]["faults"]
    assert (facts["done"], facts["retried"], facts["failed"]) == (2, 3, 2)

    allowed = UnitsConfig(workers=2, max_failed_units=1)
    records = run_units(
        [units[3], units[0], units[2]], FaultyWorker, {"marks": marks}, config=allowed, **options
    )
    assert list(records.items()) == [("good", {"attempt": 0}), ("once", {"attempt": 1})]
    assert draft.facts["failed_units"] == {"bad": "data.txt:7: bad"}


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_unit_that_kills_its_actor_leaves_the_others_finished(draft, tmp_path, at_once):
    marks = tmp_path / "marks"
    marks.mkdir()
    units = [Unit("killer", {"kills": True}), *(Unit(f"unit-{i}", {}) for i in range(5))]
    options = {"draft": draft, "config": UnitsConfig(workers=2), "title": "faults", "at_once": at_once}
    with pytest.raises(UserError, match=r"1 of 6 units failed \(killer: the actor that ran it died 3 times"):
        run_units(units, FaultyWorker, {"marks": marks}, **options)
    assert sorted(draft.ledger.done()) == [f"unit-{i}" for i in range(5)]
    assert len(list(marks.glob("killer-*"))) == 3


class GreedyWorker:
    """A worker that takes the memory it is told to."""

    def run(self, unit_id, payload):
        return {"bytes": len(bytearray(payload["bytes"]))}


def test_a_unit_is_held_to_its_memory(draft):
    units = [Unit("modest", {"bytes": 2**20}), Unit("greedy", {"bytes": 2 * 2**30})]
    config = UnitsConfig(workers=1, memory_per_worker=0.5)
    with pytest.raises(UserError, match=r"1 of 2 units failed \(greedy: out of memory .*memory-per-worker"):
        run_units(units, GreedyWorker, {}, draft=draft, config=config, title="memory")
    assert list(draft.ledger.done()) == ["modest"]


def test_more_memory_than_there_is_is_refused(draft):
    config = UnitsConfig(memory_per_worker=1e6)
    with pytest.raises(UserError, match=r"--memory-per-worker 1e\+06: no node has more than"):
        run_units([Unit("a", {"bytes": 1})], GreedyWorker, {}, draft=draft, config=config, title="memory")
