"""When checkpoints are evaluated beside a training, and what is left of it. Ray is not started: evaluations
begin and end as a test says.
"""

from types import SimpleNamespace

import pytest
import ray

from cluster.artifacts.folder import Folder
from cluster.artifacts.storage import open_storage
from cluster.artifacts.workspace import Workspace
from cluster.placement import Node, Share
from llm.training.metrics_log import read_records
from pipelines import evaluation_beside
from pipelines.evaluation_beside import EvaluationBeside, place_beside

STEPS = 400
STEP, COMMITTED = {"step": 110, "loss": 3.0}, {"step": 110, "checkpoint_commit_seconds": 0.1}


class Evaluations:
    """Stand for Ray and its process: those that were begun, each with the steps that it was to leave out."""

    def __init__(self) -> None:
        self.begun: list[frozenset[int]] = []
        self.ended: dict[int, object] = {}

    def options(self, **_):
        return self

    def remote(self, evaluate, job, done, threads):
        self.begun.append(done)
        return len(self.begun) - 1

    def wait(self, handles, timeout):
        return [each for each in handles if each in self.ended], handles

    def get(self, handle):
        if isinstance(self.ended[handle], Exception):
            raise self.ended[handle]
        return self.ended[handle]

    def end(self, result):
        self.ended[len(self.begun) - 1] = result


class Run:
    """A run in a folder whose driver looks at it; `again` is the driver that comes after."""

    def __init__(self, root) -> None:
        self.workspace = Workspace(Folder(open_storage(root), "models/base/1a0a"))
        self.ticket = SimpleNamespace(is_current=lambda: self.holds)
        self.holds, self.threads, self.config = True, 1, None
        self.said: list[str] = []
        self.measured: list[dict] = []
        self.again()

    def again(self) -> None:
        place = Share(0.0)
        self.beside = EvaluationBeside(
            lambda *_: None, self, STEPS, place, self.said.append, self.measured.append
        )

    @property
    def log(self):
        return self.workspace.path / "evaluations.jsonl"


@pytest.fixture
def evaluations(monkeypatch):
    made = Evaluations()
    monkeypatch.setattr(evaluation_beside, "_evaluation", made)
    monkeypatch.setattr(ray, "wait", made.wait)
    monkeypatch.setattr(ray, "get", made.get)
    return made


@pytest.fixture
def run(tmp_path, evaluations):
    return Run(tmp_path)


def test_one_at_a_time_and_each_step_once(run, evaluations):
    look = run.beside.look
    look([STEP])
    assert not evaluations.begun, "there is no checkpoint"
    look([COMMITTED])
    look([COMMITTED, STEP])
    assert evaluations.begun == [frozenset()], "a second checkpoint waits"
    found = {"step": 200, "heldout_bits_per_byte": 1.5}
    evaluations.end(found)
    look([])
    assert evaluations.begun == [frozenset(), frozenset({200})]
    assert run.measured == read_records(run.log) == [found]
    evaluations.end(None)  # The second one was what the first had taken.
    look([])
    look([STEP])
    assert len(evaluations.begun) == 2
    assert read_records(run.log) == [found]


def test_a_driver_that_comes_after_knows_what_is_done_and_repairs_the_log(run, evaluations):
    (run.workspace.path / "checkpoints/step-00000100").mkdir(parents=True)
    whole = '{"step": 100, "heldout_bits_per_byte": 2.0}\n'
    run.log.write_text(whole + '{"step": 200, "heldout_bi')
    run.again()
    assert run.log.read_text() == whole
    run.beside.look([STEP])
    assert not evaluations.begun

    (run.workspace.path / "checkpoints/step-00000200").mkdir()
    run.again()
    run.beside.look([{"said": "a word"}])
    assert not evaluations.begun, "workers come first"
    run.beside.look([STEP])
    assert evaluations.begun == [frozenset({100})]
    evaluations.end({"step": 200})
    run.beside.look([])
    assert run.log.read_text() == whole + '{"step": 200}\n'


def test_what_goes_wrong_is_said_and_tried_again_a_few_times(run, evaluations):
    run.beside.look([STEP, COMMITTED])
    for times in (1, 2, 3):
        assert len(evaluations.begun) == times
        evaluations.end(ray.exceptions.WorkerCrashedError())
        run.beside.look([])
    assert len(evaluations.begun) == 3, "until there is another checkpoint"
    assert len(run.said) == 3
    assert all(line.startswith("an evaluation beside the training failed: The worker") for line in run.said)
    assert not any("\n" in line for line in run.said)
    run.beside.look([COMMITTED])
    evaluations.end({"step": 200})
    run.beside.look([])
    assert run.measured == [{"step": 200}]


def test_a_run_that_was_taken_over_is_not_written_to(run, evaluations):
    run.beside.look([STEP, COMMITTED])
    run.holds = False
    evaluations.end({"step": 100})
    run.beside.look([])
    assert (run.measured, run.log.read_text()) == ([], "")


def test_the_end_waits_for_the_last_checkpoint_but_not_for_long(run, evaluations, monkeypatch):
    monkeypatch.setattr(evaluation_beside, "_LAST_SECONDS", 0.0)
    run.beside.look([STEP, COMMITTED])
    run.beside.finish()
    assert "step 400 is not in evaluations.jsonl" in run.said.pop()

    def at_once(handles, timeout):
        evaluations.end({"step": 100 * len(evaluations.begun) + 200})
        return handles, []

    monkeypatch.setattr(ray, "wait", at_once)
    run.beside.finish()
    assert [record["step"] for record in run.measured] == [300, 400]
    run.beside.finish()
    assert len(evaluations.begun) == 2
    assert not run.said


@pytest.mark.parametrize(
    ("nodes", "workers", "each", "place"),
    [
        ([Node(2)], 1, Share(2.0), Share(0.0)),
        ([Node(8)], 3, Share(2.0), Share(2.0)),
        ([Node(3), Node(3)], 2, Share(2.0), Share(0.0)),
        ([Node(64, 8)], 7, Share(9.0, 1), Share(0.0, 1)),
        ([Node(64, 8)], 8, Share(8.0, 1), Share(0.0)),
        ([Node(64, 8)], 8, Share(4.0, 1), Share(4.0)),
        ([Node(32, 4), Node(32, 4)], 8, Share(4.0, 1), Share(4.0)),
    ],
)
def test_it_takes_what_workers_leave(nodes, workers, each, place):
    assert place_beside(nodes, workers, each) == place
