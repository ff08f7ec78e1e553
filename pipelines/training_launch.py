"""Run a training worker function on the cluster with Ray Train, and show how it goes. Driver side.

Ray Train starts the workers, joins them in a process group and starts them again when one dies. It is told
of no checkpoint: the workers find our newest whole one by themselves, so there is one truth about where a
run is.
"""

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.artifacts.draft import Draft
from cluster.artifacts.lease import Ticket
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.workspace import Workspace
from cluster.connect import Cluster
from cluster.errors import UserError
from cluster.placement import Share
from llm.models.config import ModelConfig
from pipelines.actors.progress_board import ProgressBoard
from pipelines.evaluation_beside import Evaluate, EvaluationBeside
from pipelines.model_folder import attachments
from pipelines.progress import StageProgress, stage_progress
from pipelines.run_metrics import RunMetrics
from pipelines.training_config import TrainingConfig
from pipelines.training_end import Retries

FATAL = "fatal"
RESULT = "result"
"""Fields of the progress board that end a run: why it cannot go on, in one line, or what it made."""
HUNG = "hung"
"""Which workers hung at which step, in one line; comes with the checkpoint that the run goes on `from`."""
SAID = "said"
"""Anything else that the user is to read."""
_POLL_SECONDS = 0.5
_SHOWN = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_s",
    "mfu",
    "heldout_bits_per_byte",
    "heldout_loss",
    "heldout_accuracy",
)


@dataclass(frozen=True)
class TrainingJob:
    """What every worker is told."""

    config: TrainingConfig
    model: ModelConfig
    workspace: Workspace
    """Where the run writes, on whichever machine."""
    ticket: Ticket
    """Says whether this run may still write."""
    inputs: dict[str, Artifact]
    """Input artifacts by role; `tokenizer` is one that has a tokenizer's file."""
    attachments: dict[str, bytes]
    """What each checkpoint carries besides the run's own state, so that it is a model by itself."""
    threads: int
    board: Any
    """Handle of the progress board."""


def run_training(
    worker: Callable[[dict[str, Any]], None],
    stage: str,
    config: TrainingConfig,
    cluster: Cluster,
    model: ModelConfig,
    draft: Draft,
    inputs: dict[str, Artifact],
    steps: int,
    evaluate: Evaluate | None = None,
) -> dict[str, Any]:
    """Run `worker({"job": TrainingJob})` on `config.workers` workers; returns the counts that rank 0 posted.

    The files that it wrote are then part of the draft.

    evaluate: called in a process of its own, beside the workers, whenever there is a new checkpoint.

    Raises:
        UserError: a worker said that the user must mend something, or workers died too often.
    """
    cluster.connect()
    workers = _expected_workers(config, cluster)
    share = cluster.share(workers)
    threads = config.threads_per_worker or max(1, int(share.cpus))
    # One GPU a worker where there are enough; CPUs as threads, less where the cluster has not so many.
    each = Share(min(float(threads), share.cpus), share.gpus)
    # On this machine: if it were on a node that dies, the run would die with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ProgressBoard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    attached = attachments(draft)
    job = TrainingJob(config, model, draft.workspace, draft.ticket, inputs, attached, threads, board)
    scratch = draft.workspace.path / "ray_train"
    # Nobody takes nodes back from a cluster of this machine alone, and watching for it is one more process.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "1" if cluster.joined else "0"
    trainer = _trainer(worker, stage, job, each, scratch)
    failures: list[str] = []
    fit = threading.Thread(target=_fit, args=(trainer, failures), name="ray-train", daemon=True)
    with (
        stage_progress(stage, steps, "step") as progress,
        RunMetrics("training", config, stage, draft.version, draft.workspace) as run_metrics,
    ):
        latest: dict[str, Any] = {}

        def evaluated(record: dict[str, Any]) -> None:
            run_metrics.log_evaluation(record)
            latest.update({name: value for name, value in record.items() if name != "step"})

        beside = None
        if evaluate is not None:
            if each.gpus and cluster.gpus <= workers * each.gpus:
                progress.say("no GPU is left for the evaluation beside the workers: it is done on CPUs")
            beside = EvaluationBeside(evaluate, job, steps, each, progress.say, evaluated)
        fit.start()
        while fit.is_alive():
            fit.join(_POLL_SECONDS)
            _follow(board, config, latest, progress, run_metrics, beside)
        _follow(board, config, latest, progress, run_metrics, beside)
        if beside is not None:
            if RESULT in latest:
                beside.finish()
            beside.close()
    ray.kill(board)
    shutil.rmtree(scratch, ignore_errors=True)
    if RESULT not in latest:
        reasons = [latest.get(FATAL) or " ".join(failures) or "the workers left no result"]
        raise UserError(f"{stage}: {'; '.join([latest[HUNG], *reasons] if HUNG in latest else reasons)}")
    draft.include(latest[RESULT]["files"])
    counts: dict[str, Any] = latest[RESULT]["counts"]
    return counts


def _trainer(
    worker: Callable[[dict[str, Any]], None], stage: str, job: TrainingJob, each: Share, scratch: Path
) -> TorchTrainer:
    """each: what a worker reserves. scratch: for Ray Train's own files."""
    config = job.config
    return _Trainer(
        worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if each.gpus else "gloo",
            # Whoever watches the steps is to see a hang before torch does, which says less of it.
            timeout_s=max(1800, int(4 * config.hang_timeout)),
        ),
        scaling_config=_scaling(config, each),
        run_config=RunConfig(
            name=stage,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )


def _follow(
    board: Any,
    config: TrainingConfig,
    latest: dict[str, Any],
    progress: StageProgress,
    run_metrics: RunMetrics,
    beside: EvaluationBeside | None,
) -> None:
    """Log each record that was posted meanwhile, say what is to be said, and show and keep the latest value
    of every field.
    """
    records: list[dict[str, Any]] = ray.get(board.take.remote())
    shown_step = latest.get("step", 0)
    for record in records:
        run_metrics.log(record)
        if SAID in record:
            progress.say(record[SAID])
        if HUNG in record and HUNG not in latest:  # Where rank 0 is silent, all others tell.
            again = f"; the workers start again from {record['from'] or 'the beginning'}"
            progress.say(record[HUNG] + (again if config.max_failures else ""))
        if "loss" in record:
            latest.pop(HUNG, None)  # That was another time.
        latest.update(record)
    if beside is not None:
        beside.look(records)
    if latest.get("step", 0) != shown_step:
        progress.update(latest["step"], **{key: latest[key] for key in _SHOWN if key in latest})


class _Trainer(TorchTrainer):
    """Ray Train that knows what is final, and without two actors of its own, each of which is a process that
    takes seconds to start.

    One serves Ray datasets, and we have none. The other removes a dead controller's placement group, which
    goes with the controller in any case; it asks the dashboard whether the controller lives, and where Ray
    has none it holds up the end of every run for 12 s. (Returning without waiting is no way out: a thread
    that is still in Ray when Ray stops takes the process down.)
    """

    def _create_default_callbacks(self) -> list[Any]:
        superfluous = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, superfluous)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = Retries(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**arguments)


def _fit(trainer: TorchTrainer, failures: list[str]) -> None:
    """Run `trainer.fit()` beside the main thread, which so keeps Ctrl-C for itself.

    In the main thread Ray Train takes the signal and may end the process with code 0, as if all were well.
    """
    try:
        trainer.fit()
    except TrainingFailedError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        failures.append(
            f"workers failed too often (at last: {lines[-1]}); "
            "run the command again to go on from the newest checkpoint"
        )
    except SystemExit:
        pass  # Ray was stopped meanwhile; whoever did it knows.
    except ray.exceptions.RayError as error:
        failures.append(f"Ray Train's controller failed: {str(error).strip().splitlines()[-1]}")


def _expected_workers(config: TrainingConfig, cluster: Cluster) -> int:
    """How many an elastic run would have now: one a GPU, else one a node, within its limits."""
    gpus, nodes = int(cluster.gpus), len(cluster.nodes)
    return min(max(config.fewest_workers, gpus or nodes), config.most_workers)


def _scaling(config: TrainingConfig, each: Share) -> ScalingConfig:
    return ScalingConfig(
        num_workers=config.workers,
        use_gpu=each.gpus > 0,
        resources_per_worker={"CPU": each.cpus, **({"GPU": each.gpus} if each.gpus else {})},
    )
