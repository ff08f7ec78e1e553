"""Where a run's metrics go besides its own files: to wandb and to Ray's Prometheus endpoint. Driver side."""

from types import TracebackType
from typing import Any, Self

from cluster.artifacts.workspace import Workspace
from cluster.prometheus import Emitter
from pipelines.wandb_config import WandbConfig
from pipelines.wandb_run import WandbRun, publish_offline_runs, run_name


class RunMetrics:
    """The metrics of one run, for the length of a `with` block; Ray must be running.

    group: of `cluster.metrics`. What it does not declare goes to wandb alone.
    version: of the artifact that is made.
    workspace: gets what wandb writes down offline.
    """

    def __init__(
        self, group: str, config: WandbConfig, stage: str, version: str, workspace: Workspace
    ) -> None:
        self._workspace = workspace
        self._wandb = WandbRun(config, stage, version, workspace.path)
        self._emitter = Emitter(group, {"stage": stage, "run": run_name(config, version)})

    def log(self, record: dict[str, Any]) -> None:
        """What was measured at a `step`. Logging it again is harmless."""
        if "step" in record:
            self._emitter.set_declared(record)
            self._wandb.log(record)

    def log_evaluation(self, record: dict[str, Any]) -> None:
        """What was measured of the model as it was after a `step`, maybe after later ones were logged; each
        step once.
        """
        self._emitter.set_declared({name: value for name, value in record.items() if name != "step"})
        self._wandb.log_aside(record)

    def count(self, name: str, amount: int) -> None:
        """Add to a counter of the group, at the Prometheus endpoint."""
        self._emitter.count(name, amount)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._emitter.close()
        self._wandb.finish(succeeded=error is None)
        if error is None or isinstance(error, Exception):  # not on Ctrl-C, which does not wait
            publish_offline_runs(self._workspace)
