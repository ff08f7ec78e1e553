"""Weights & Biases, from the driver: the workers' loop neither waits for it nor knows of it.

Without WANDB_API_KEY or WANDB_MODE nothing goes to wandb: the run is written below the artifact's folder, and
`wandb sync` uploads it whenever the user likes. Commands that went on where another was killed have a folder
each; synced in their order they are one run.
"""

import logging
import os
from pathlib import Path
from typing import Any

from cluster.artifacts.workspace import Workspace
from cluster.errors import UserError
from pipelines.progress import console
from pipelines.wandb_config import WandbConfig


def run_name(config: WandbConfig, version: str) -> str:
    """NAME-VERSION of the artifact that is made: what a run is called in wandb and in Prometheus."""
    return f"{config.name}-{version}"


class WandbRun:
    """A wandb run, opened at the first metrics.

    Online, a command that goes on where another was killed goes on with its run too, and leaves out the steps
    that are there already: they are taken again with the same result.
    """

    def __init__(self, config: WandbConfig, stage: str, version: str, folder: Path) -> None:
        self._config, self._stage, self._version, self._folder = config, stage, version, folder
        self._mode = _mode(config.wandb)
        self._run: Any = None
        self._logged_step = 0
        self._logged_fields: set[str] = set()

    def log(self, metrics: dict[str, Any]) -> None:
        """Log the metrics of a step unless they are logged already: a run that was set back repeats steps."""
        if not self._is_open() or metrics["step"] < self._logged_step:
            return
        if metrics["step"] > self._logged_step:
            self._logged_step, self._logged_fields = metrics["step"], set[str]()
        if metrics.keys() <= self._logged_fields:
            return
        self._logged_fields |= metrics.keys()
        self._run.log(_numbers(metrics))

    def log_aside(self, metrics: dict[str, Any]) -> None:
        """Log other metrics of a step than those of `log`, which may be far ahead; its caller knows which are
        logged already.
        """
        if self._is_open():
            reached = self._run.summary.get("step", 0)
            self._run.log(_numbers(metrics))
            # A command that goes on with the run begins to log after it.
            self._run.summary["step"] = max(reached, metrics["step"])

    def _is_open(self) -> bool:
        """Open the run if need be; False if there is to be none."""
        if self._run is None and self._mode != "disabled":
            self._run = self._open_or_stay_offline()
            if self._run.resumed:
                self._logged_step = int(self._run.summary.get("step", 0)) + 1
        return self._run is not None

    def _open_or_stay_offline(self) -> Any:
        """A training does not end because wandb's server cannot be had: the run is then kept here."""
        import wandb

        try:
            return self._open()
        except wandb.Error as error:
            if self._mode == "offline":
                raise
            console.print(
                f"wandb: {error}. The run stays below {self._folder}/wandb; `wandb sync` uploads it",
                markup=False,
            )
            self._mode = "offline"
            return self._open()

    def _open(self) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # wandb keeps a log of its own beside the run. On a full disk each of its lines would be a traceback.
        logging.raiseExceptions = False
        import wandb

        run = wandb.init(
            project=self._config.wandb_project,
            name=run_name(self._config, self._version),
            id=self._version,
            # Offline it is kept for `wandb sync`, which then appends what a command wrote that went on here.
            resume="allow",
            job_type=self._stage,
            dir=self._folder,
            mode=self._mode,
            config=self._config.what(),
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, x_save_requirements=False
            ),
        )
        run.define_metric("*", step_metric="step")
        return run

    def finish(self, succeeded: bool) -> None:
        """Write what is pending and end the run. A disk that is full for it ends nothing else."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=0 if succeeded else 1)
        except OSError as error:
            console.print(f"wandb's run is not whole: {error}", markup=False)


def _numbers(metrics: dict[str, Any]) -> dict[str, int | float]:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def publish_offline_runs(workspace: Workspace) -> None:
    """Put what offline runs wrote on this machine beside the artifact, where that is in object storage.

    It is no part of the artifact: what goes wrong is said, and ends nothing.
    """
    if workspace.folder.local is not None:
        return
    here = workspace.path
    files = [path for path in here.glob("wandb/offline-run-*/**/*") if path.is_file()]
    try:
        workspace.publish([path.relative_to(here).as_posix() for path in sorted(files)])
    except (OSError, UserError) as error:
        console.print(f"wandb's offline run stays on this machine, in {here}/wandb: {error}", markup=False)


def _mode(choice: str) -> Any:
    """The wandb mode for the configured choice; what the user set in the environment counts for `auto`
    alone.
    """
    if choice != "auto":
        return choice
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"
