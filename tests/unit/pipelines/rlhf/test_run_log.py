"""What RLHF measures reaches its files, wandb and the Prometheus endpoint, under declared names."""

from pathlib import Path

import pytest

from cluster import prometheus
from cluster.artifacts.folder import Folder
from cluster.artifacts.lease import Lease, LeaseLost
from cluster.artifacts.storage import open_storage
from cluster.artifacts.workspace import Workspace
from cluster.metrics import declared
from llm.alignment.rollouts import Rollout
from llm.training.metrics_log import read_records
from pipelines.progress import StageProgress
from pipelines.rlhf.config import RLHFConfig
from pipelines.rlhf.run_log import RunLog
from pipelines.run_metrics import RunMetrics
from pipelines.wandb_run import WandbRun
from tests.unit.cluster.recorded_metrics import Recorded

SECONDS = {"generate": 2.0, "score": 0.5, "learn": 3.0, "send": 0.1}
RUN = {"stage": "rlhf", "run": "aligned-1f"}


class Wandb:
    """Stands for wandb's run."""

    resumed = False

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self.exit_codes: list[int] = []

    def log(self, record: dict[str, float]) -> None:
        self.records.append(record)

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


class Words:
    """Stands for a tokenizer."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def workspace(folder: Path) -> Workspace:
    return Workspace(Folder(open_storage(folder), "1f"))


def metrics(step: int) -> dict[str, float]:
    values = {"score": 0.1, "kl": 0.2, "entropy": 1.5, "length": 20.0, "cut": 0.0}
    return {"step": step, "beta": 0.05} | {name: value * step for name, value in values.items()}


def test_an_iteration_goes_everywhere_under_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, wandb = Recorded(monkeypatch, prometheus), Wandb()
    monkeypatch.setattr(WandbRun, "_open", lambda self: wandb)
    folder = tmp_path / "1f"
    folder.mkdir()
    config = RLHFConfig(name="aligned", wandb="offline")
    rollouts = [Rollout("p", [1, 2], [3, 4], [-0.1, -0.2], 0, "stop", seed=0)]
    with RunMetrics("rlhf", config, "rlhf", "1f", workspace(tmp_path)) as run_metrics:
        leases = Folder(open_storage(tmp_path), "leases")
        lease = Lease(leases, "aligned.json", "models/aligned")
        lease.acquire()
        progress = StageProgress("rlhf", 2, "iteration", None)
        log = RunLog(folder, 0, Words(), progress, run_metrics, lease.ticket)
        log.record(metrics(1), SECONDS, 0, rollouts, [0.1])
        log.record(metrics(2), SECONDS, 2, rollouts, [0.2])
        Lease(leases, "aligned.json", "models/aligned").acquire()
        with pytest.raises(LeaseLost):
            log.flush()
        with pytest.raises(LeaseLost):  # and leaves what is written there
            RunLog(folder, 0, Words(), progress, run_metrics, lease.ticket)

    assert read_records(folder / "metrics.jsonl") == [metrics(1), metrics(2)], "no clock readings"
    phases = {f"{phase}_seconds": spent for phase, spent in SECONDS.items()}
    timing = [{"step": 1, **phases, "engine_deaths": 0}, {"step": 2, **phases, "engine_deaths": 2}]
    assert read_records(folder / "timing.jsonl") == timing
    assert wandb.records == [metrics(1) | timing[0], metrics(2) | timing[1]]
    assert wandb.exit_codes == [0]

    assert wandb.records[0].keys() <= declared("rlhf").keys()
    shown = {name: recorded.series(f"manta_rlhf_{name}") for name in wandb.records[1]}
    assert shown == {name: [(RUN, value)] for name, value in wandb.records[1].items()}


def test_a_run_that_fails_says_so_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Recorded(monkeypatch, prometheus)
    wandb = Wandb()
    monkeypatch.setattr(WandbRun, "_open", lambda self: wandb)

    def fail() -> None:
        with RunMetrics(
            "rlhf", RLHFConfig(wandb="offline"), "rlhf", "1f", workspace(tmp_path)
        ) as run_metrics:
            run_metrics.log({"step": 1, "score": 0.5})
            raise RuntimeError("all engines died")

    with pytest.raises(RuntimeError, match="all engines"):
        fail()
    assert wandb.exit_codes == [1]
