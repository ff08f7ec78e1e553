"""Held-out evaluation beside a training, of its checkpoints, by one process that is none of its workers.
Driver side.

    workers   steps ── checkpoint 100 ── steps ── 200 ── steps ── 300 ── steps ── checkpoint 400
    beside              evaluate 100 ────────────────── evaluate 300 ───────────── evaluate 400

It takes the newest checkpoint each time and passes over those that came and were followed by others
meanwhile. The process lives for one evaluation: between two of them it holds neither a GPU, which workers
that start again may need, nor memory. What came of it is written by the driver, who holds the lease, to
`evaluations.jsonl` in the model's folder: one line a step, in the order in which they were evaluated.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import UserError
from cluster.placement import Share, assigned_device
from llm.training.metrics_log import JsonLines, read_records
from pipelines.checkpoint_mirror import kept_steps
from pipelines.model_folder import EVALUATIONS

if TYPE_CHECKING:
    from pipelines.training_launch import TrainingJob  # which imports this module

Evaluate = Callable[["TrainingJob", frozenset[int], torch.device], dict[str, Any] | None]
"""(job, steps to leave out, device) -> measures of the newest checkpoint, with its `step`; None if that is to
be left out, or there is none.
"""
_COMMITTED = "checkpoint_commit_seconds"
"""Field of the workers' records that says that there is a new checkpoint."""
_RETRIES = 2
"""Of a failed evaluation, until there is another checkpoint."""
_LAST_SECONDS = 120.0
"""For which the end of a training is put off, to have its last checkpoint evaluated."""
_NICENESS = 10


def place_beside(free: Mapping[str, float], each: Share) -> Share:
    """What an evaluation may reserve of what is free, beside workers that reserve `each`: a GPU if they do
    and one is free, else as many CPUs as they, else nothing. So it never waits for anybody.

    free: of one node, by Ray's names.
    """
    if each.gpus and free.get("GPU", 0) >= 1:
        return Share(0.0, gpus=1)
    return Share(each.cpus) if 0 < each.cpus <= free.get("CPU", 0) else Share(0.0)


def most_free(each: Share) -> tuple[str, Share]:
    """The node on which an evaluation is placed best at this moment, and what it may reserve there; where
    nothing is free it is one that has CPUs, which the head of a cluster need not.
    """
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    cpus = {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]}
    places = {node: place_beside(free.get(node, {}), each) for node in cpus}
    best = max(places, key=lambda node: (places[node].gpus, places[node].cpus, cpus[node]))
    return best, places[best]


class EvaluationBeside:
    """The evaluations of one run. What goes wrong with them is said, and is nothing to the training."""

    def __init__(
        self,
        evaluate: Evaluate,
        job: "TrainingJob",
        steps: int,
        each: Share,
        say: Callable[[str], None],
        measured: Callable[[dict[str, Any]], None],
    ) -> None:
        """
        Args:
            steps: after which the run ends, with a checkpoint.
            each: what a worker reserves.
            say: told what the user is to read.
            measured: told of each evaluation, once it is written.
        """
        self._evaluate, self._job, self._steps, self._each = evaluate, job, steps, each
        self._say, self._measured = say, measured
        job.workspace.restore([EVALUATIONS])
        self._path = job.workspace.path / EVALUATIONS
        kept = kept_steps(job.workspace.folder)
        # Without what a killed driver wrote of a line, or another run of the name left on this machine.
        self._log = JsonLines(self._path, max(kept, default=0))
        self._done = {record["step"] for record in read_records(self._path)}
        self._due = not self._done.issuperset(kept[:1])
        self._failures = 0
        self._is_published = True
        self._running: ray.ObjectRef | None = None

    def look(self, records: Sequence[dict[str, Any]]) -> None:
        """Take what an evaluation has come to, and start one if there is a checkpoint for it; does not wait.

        records: the workers', since the last look. Nothing is started unless there are any of steps: workers
            that start, maybe again, come first where there is little room.
        """
        if any(_COMMITTED in record for record in records):
            self._due, self._failures = True, 0
        if self._running is not None and ray.wait([self._running], timeout=0)[0]:
            self._take()
        if self._running is None and self._due and any("step" in record for record in records):
            self._start()

    def finish(self) -> None:
        """Wait a while for the evaluation of the last checkpoint. For a run that has ended well."""
        deadline = time.monotonic() + _LAST_SECONDS
        self._failures = 0
        while self._steps not in self._done and self._failures <= _RETRIES:
            began_before = self._running is not None  # and may have looked before the last checkpoint
            if self._running is None:
                self._start()
            if not ray.wait([self._running], timeout=max(0.0, deadline - time.monotonic()))[0]:
                self._say(
                    f"step {self._steps} is not in {EVALUATIONS}: {_LAST_SECONDS:.0f} s after the end of the "
                    "training it was not evaluated; the manifest has the model's measures"
                )
                return
            if not self._take() and not self._failures and not began_before:
                break
        self._publish()

    def close(self) -> None:
        """Drop the evaluation that is under way."""
        if self._running is not None:
            ray.cancel(self._running, force=True)
            self._running = None

    def _start(self) -> None:
        self._due = False
        node, place = most_free(self._each)
        options = {"num_cpus": place.cpus, "num_gpus": place.gpus}
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        threads = self._job.threads if place != Share(0.0) else 1
        asked = (self._evaluate, self._job, frozenset(self._done), threads)
        self._running = _evaluation.options(**options).remote(*asked)

    def _take(self) -> bool:
        """Whether the evaluation that has ended gave a new step."""
        ended, self._running = self._running, None
        try:
            record = ray.get(ended)
            if record is None or not self._job.ticket.is_current():
                return False
            self._write(record)
        except (ray.exceptions.RayError, OSError, UserError) as error:
            self._failures += 1
            self._due |= self._failures <= _RETRIES
            self._say(f"an evaluation beside the training failed: {_why(error)}; the training goes on")
            return False
        self._failures = 0
        self._measured(record)
        self._publish()
        return True

    def _write(self, record: dict[str, Any]) -> None:
        """Raises OSError; the log is then as it was."""
        try:
            self._log.append(record)
            self._log.flush()
        except OSError:
            self._log = JsonLines(self._path, max(self._done, default=0))
            raise
        self._done.add(record["step"])
        self._is_published = False

    def _publish(self) -> None:
        """What could not be published is, with the next evaluation or at the end."""
        if self._is_published:
            return
        try:
            if self._job.ticket.is_current():
                self._job.workspace.publish([EVALUATIONS])
                self._is_published = True
        except (OSError, UserError) as error:
            self._say(f"{EVALUATIONS} stays on this machine for now: {_why(error)}")


@ray.remote(max_calls=1, max_retries=0)
def _evaluation(
    evaluate: Evaluate, job: "TrainingJob", done: frozenset[int], threads: int
) -> dict[str, Any] | None:
    """In a process of its own, which leaves the processors to the workers where they want them."""
    os.nice(_NICENESS)
    torch.set_num_threads(threads)
    return evaluate(job, done, torch.device(assigned_device()))


def _why(error: Exception) -> str:
    """One line."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    first_line = next(iter(str(cause).strip().splitlines()), "")
    known = isinstance(cause, ray.exceptions.RayError | UserError)
    return first_line if known else f"{type(cause).__name__}: {first_line}"
