"""When checkpoints are evaluated beside a training, and what is left of it. Ray is not started: evaluations
begin and end as a test says.
"""

from types import SimpleNamespace

import pytest
import ray

from cluster.artifacts.folder import Folder
from cluster.artifacts.storage import open_storage
from cluster.artifacts.workspace import Workspace
from cluster.errors import StorageError
from cluster.placement import Share
from llm.training.metrics_log import read_records
from pipelines import evaluation_beside
from pipelines.evaluation_beside import EvaluationBeside, most_free, place_beside

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
        self.beside = EvaluationBeside(
            lambda *_: None, self, STEPS, Share(2.0), self.said.append, self.measured.append
        )

    @property
    def log(self):
        return self.workspace.path / "evaluations.jsonl"


@pytest.fixture
def evaluations(monkeypatch):
    made = Evaluations()
    monkeypatch.setattr(evaluation_beside, "_evaluation", made)
    monkeypatch.setattr(evaluation_beside, "most_free", lambda each: ("0" * 56, Share(0.0)))
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
    assert len(evaluations.begun) == 1, "workers that are silent may be starting again, and come first"
    look([STEP])
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
    run.log.write_text(whole + '{"step": 300}\n{"step": 200, "heldout_bi')  # Another run had more steps.
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

    def fail_three_times():
        begun = len(evaluations.begun)
        for times in (0, 1, 2):
            assert len(evaluations.begun) == begun + times
            evaluations.end(ray.exceptions.WorkerCrashedError())
            run.beside.look([STEP])
        assert len(evaluations.begun) == begun + 2, "until there is another checkpoint"

    fail_three_times()
    assert len(run.said) == 3
    assert all(line.startswith("an evaluation beside the training failed: The worker") for line in run.said)
    assert not any("\n" in line for line in run.said)
    run.beside.look([COMMITTED])
    fail_three_times()
    run.beside.look([COMMITTED])
    evaluations.end({"step": 200})
    run.beside.look([])
    assert run.measured == [{"step": 200}]


def test_the_last_checkpoint_is_tried_whatever_failed_before(run, evaluations, monkeypatch):
    results = [ray.exceptions.WorkerCrashedError()] * 3 + [None, {"step": STEPS}]

    def at_once(handles, timeout):
        evaluations.end(results[len(evaluations.begun) - 1])
        return handles, []

    monkeypatch.setattr(ray, "wait", at_once)
    run.beside.look([STEP, COMMITTED])
    for _ in range(3):
        run.beside.look([STEP])
    run.beside.look([STEP, COMMITTED])  # It looks before the last checkpoint is there, and finds none.
    run.beside.finish()
    assert run.measured == [{"step": STEPS}]


def test_a_line_that_could_not_be_written_is_not_done(run, evaluations, monkeypatch):
    def full(self, durable=False):
        with open(run.log, "a") as stream:
            stream.write('{"step": 2')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(evaluation_beside.JsonLines, "flush", full)
        run.beside.look([STEP, COMMITTED])
        evaluations.end({"step": 200})
        run.beside.look([STEP])
    assert "No space left on device" in run.said.pop()
    assert evaluations.begun == [frozenset(), frozenset()]
    evaluations.end({"step": 200})
    run.beside.look([])
    assert run.measured == read_records(run.log) == [{"step": 200}]


def test_what_cannot_be_published_is_measured_and_published_later(run, evaluations, monkeypatch):
    published: list[list[str]] = []

    def publish(self, names):
        published.append(names)
        if len(published) == 1:
            raise OSError("no route to host")

    monkeypatch.setattr(Workspace, "publish", publish)
    run.beside.look([STEP, COMMITTED])
    evaluations.end({"step": STEPS})
    run.beside.look([STEP])
    assert run.measured == [{"step": STEPS}]
    assert len(evaluations.begun) == 1
    run.beside.finish()
    assert published == [["evaluations.jsonl"]] * 2


def test_storage_that_does_not_say_who_holds_the_run_ends_nothing(run, evaluations):
    answers = iter([True, StorageError("the bucket is away"), True])

    def is_current():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    run.ticket.is_current = is_current
    run.beside.look([STEP, COMMITTED])
    evaluations.end({"step": STEPS})
    run.beside.look([STEP])
    assert run.said == ["evaluations.jsonl stays on this machine for now: the bucket is away"]
    run.beside.finish()
    assert run.workspace.folder.read("evaluations.jsonl")


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
    ("free", "each", "place"),
    [
        ({}, Share(2.0), Share(0.0)),
        ({"CPU": 2.0}, Share(2.0), Share(2.0)),
        ({"CPU": 1.0, "GPU": 1.0}, Share(2.0), Share(0.0)),
        ({"CPU": 1.0, "GPU": 1.0}, Share(9.0, 1), Share(0.0, 1)),
        ({"CPU": 32.0}, Share(4.0, 1), Share(4.0)),
        ({"CPU": 2.0}, Share(4.0, 1), Share(0.0)),
    ],
)
def test_it_takes_what_is_free(free, each, place):
    assert place_beside(free, each) == place


def test_it_is_where_a_gpu_or_processors_are_free_and_never_on_a_head_without_any(monkeypatch):
    nodes = {"head": 0.0, "busy": 8.0, "idle": 4.0, "gpu": 2.0}
    free = {"head": {"memory": 1e9}, "busy": {}, "idle": {"CPU": 4.0}, "gpu": {"GPU": 1.0}}

    def best(each, alive):
        there = [{"NodeID": name, "Alive": True, "Resources": {"CPU": nodes[name]}} for name in alive]
        monkeypatch.setattr(ray, "nodes", lambda: there)
        monkeypatch.setattr("ray._private.state.available_resources_per_node", lambda: free)
        return most_free(each)

    assert best(Share(4.0, 1), nodes) == ("gpu", Share(0.0, 1))
    assert best(Share(4.0), nodes) == ("idle", Share(4.0))
    assert best(Share(4.0), ("head", "busy")) == ("busy", Share(0.0))
