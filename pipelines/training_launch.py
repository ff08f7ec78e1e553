"""Run a training worker function on the cluster with Ray Train, and show how it goes. Driver side.

Ray Train starts the workers, joins them in a process group and starts them again when one dies. It is told
of no checkpoint: the workers find our newest whole one by themselves, so there is one truth about where a
run is.
"""

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.connect import Cluster
from cluster.errors import UserError
from llm.models.config import ModelConfig
from pipelines.actors.progress_board import ProgressBoard
from pipelines.progress import stage_progress
from pipelines.training_config import TrainingConfig
from pipelines.wandb_run import WandbRun

FATAL = "fatal"
"""Field of the progress board with the one line that tells the user why a run cannot go on."""
_POLL_SECONDS = 0.25
_SHOWN = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_s",
    "mfu",
    "heldout_bits_per_byte",
    "heldout_loss",
)


@dataclass(frozen=True)
class TrainingJob:
    """What every worker is told."""

    config: TrainingConfig
    model: ModelConfig
    folder: Path
    """The artifact's folder, absolute: workers run elsewhere."""
    inputs: dict[str, Path]
    """Folders of the input artifacts by role, and `tokenizer`, the tokenizer's model file."""
    threads: int
    board: Any
    """Handle of the progress board."""


def run_training(
    worker: Callable[[dict[str, Any]], dict[str, Any]],
    stage: str,
    config: TrainingConfig,
    cluster: Cluster,
    model: ModelConfig,
    folder: Path,
    inputs: dict[str, Path],
    steps: int,
) -> dict[str, Any]:
    """Run `worker({"job": TrainingJob})` on `config.workers` workers; returns what rank 0 returned.

    Raises:
        UserError: a worker said that the user must mend something, or workers died too often.
    """
    threads = config.threads_per_worker or max(1, int(cluster.cpus) // config.workers)
    board = ProgressBoard.remote()  # type: ignore[attr-defined]
    job = TrainingJob(config, model, folder, inputs, threads, board)
    scratch = folder / "ray_train"
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if cluster.gpus >= config.workers else "gloo"),
        scaling_config=_scaling(config, cluster, threads),
        run_config=RunConfig(
            name=stage,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    fit = _Fit(trainer)
    with stage_progress(stage, steps, "step") as progress, WandbRun(config, stage, folder) as wandb_run:
        fit.start()
        while fit.is_alive():
            fit.join(_POLL_SECONDS)
            latest = ray.get(board.latest.remote())
            if "step" in latest:
                progress.update(latest["step"], **{key: latest[key] for key in _SHOWN if key in latest})
                wandb_run.log(latest)
    fatal = ray.get(board.latest.remote()).get(FATAL)
    ray.kill(board)
    shutil.rmtree(scratch, ignore_errors=True)
    return fit.result(stage, fatal)


class _Fit(threading.Thread):
    """`trainer.fit()` beside the main thread, which thereby keeps Ctrl-C for itself.

    In the main thread Ray Train takes the signal and may end the process with code 0, as if all were well.
    """

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._trainer = trainer
        self._answer: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._answer = self._trainer.fit().return_value
        except BaseException as error:
            self._error = error

    def result(self, stage: str, fatal: str | None) -> dict[str, Any]:
        """Rank 0's return value, or the reason why there is none."""
        if fatal is not None:
            raise UserError(f"{stage}: {fatal}")
        if isinstance(self._error, TrainingFailedError):
            lines = [line.strip() for line in str(self._error).splitlines() if line.strip()]
            raise UserError(
                f"{stage}: training workers failed too often ({lines[-1] if lines else 'no reason given'}); "
                "run the command again to go on from the newest checkpoint"
            ) from self._error
        if self._error is not None:
            raise self._error
        answer: dict[str, Any] = self._answer
        return answer


def _scaling(config: TrainingConfig, cluster: Cluster, threads: int) -> ScalingConfig:
    """One GPU a worker where there are enough; CPUs as threads, less where the cluster has not so many."""
    cpus = min(float(threads), cluster.cpus / config.workers)
    return ScalingConfig(
        num_workers=config.workers,
        use_gpu=cluster.gpus >= config.workers,
        resources_per_worker={"CPU": cpus, **({"GPU": 1} if cluster.gpus >= config.workers else {})},
    )
