"""What goes to wandb: every record once, though a run that was set back measures its steps again."""

from unittest import mock

import pytest
import wandb

from cluster.artifacts.folder import Folder
from cluster.artifacts.local_storage import LocalStorage
from cluster.artifacts.workspace import Workspace
from cluster.errors import StorageError
from pipelines.pretrain.config import PretrainConfig
from pipelines.wandb_run import WandbRun, publish_offline_runs


class Recording:
    """Stands for wandb's run."""

    def __init__(self, resumed_step: int | None = None) -> None:
        self.resumed = resumed_step is not None
        self.summary = {"step": resumed_step} if self.resumed else {}
        self.records: list[dict[str, float]] = []

    def log(self, record: dict[str, float]) -> None:
        self.records.append(record)
        self.summary |= record


def test_a_step_that_is_repeated_is_logged_once(tmp_path, monkeypatch):
    recording = Recording()
    monkeypatch.setattr(WandbRun, "_open", lambda self: recording)
    run = WandbRun(PretrainConfig(wandb="offline"), "pretrain", "1f", tmp_path)
    first, checkpoint, second = (
        {"step": 10, "loss": 3.0},
        {"step": 10, "checkpoint_seconds": 0.5},
        {"step": 20, "loss": 2.0},
    )
    for record in (first, checkpoint, second, first, checkpoint, second, {"step": 30, "loss": 1.0}):
        run.log(record)
    assert recording.records == [first, checkpoint, second, {"step": 30, "loss": 1.0}]


def test_what_is_measured_of_a_step_long_past_is_logged_and_holds_up_nothing(tmp_path, monkeypatch):
    recording = Recording()
    monkeypatch.setattr(WandbRun, "_open", lambda self: recording)
    run = WandbRun(PretrainConfig(wandb="offline"), "pretrain", "1f", tmp_path)
    run.log({"step": 20, "loss": 2.0})
    run.log_aside({"step": 10, "heldout_loss": 3.0})
    for step in (10, 20, 30):
        run.log({"step": step, "loss": 2.0})
    assert [record["step"] for record in recording.records] == [20, 10, 30]
    run.log_aside({"step": 20, "heldout_loss": 2.5})
    assert recording.summary["step"] == 30, "from where it goes on"


def test_a_command_that_goes_on_with_a_run_adds_what_it_lacks(tmp_path, monkeypatch):
    """The killed command had logged step 20, the newest checkpoint is of step 15."""
    recording = Recording(resumed_step=20)
    monkeypatch.setattr(WandbRun, "_open", lambda self: recording)
    run = WandbRun(PretrainConfig(wandb="online"), "pretrain", "1f", tmp_path)
    for step in (16, 20, 21, 22):
        run.log({"step": step, "loss": 1.0})
    assert [record["step"] for record in recording.records] == [21, 22]


def test_a_run_has_the_identity_of_what_it_makes(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or mock.Mock())
    WandbRun(PretrainConfig(name="base", wandb="online"), "pretrain", "1f", tmp_path)._open()
    assert (asked["id"], asked["name"], asked["resume"]) == ("1f", "base-1f", "allow")
    WandbRun(PretrainConfig(name="base", wandb="offline"), "pretrain", "1f", tmp_path)._open()
    assert (asked["mode"], asked["resume"]) == ("offline", "allow"), "`wandb sync` appends to one run"


def test_a_key_that_wandb_refuses_keeps_the_run_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    run = WandbRun(PretrainConfig(wandb="online"), "pretrain", "1f", tmp_path)
    run.log({"step": 1, "loss": 3.0})
    run.finish(succeeded=True)
    said = capsys.readouterr().out
    assert "WANDB_API_KEY invalid" in said
    assert "too-short" not in said
    assert list(tmp_path.glob("wandb/offline-run-*-1f/*.wandb"))


class Bucket(LocalStorage):
    """Object storage, as far as it is not on this machine's disk."""

    def local(self, key):
        raise AssertionError

    def upload(self, path, key):
        if self.root.name == "refuses":
            raise StorageError("s3://bucket refuses the credentials")
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
        (self.root / key).write_bytes(path.read_bytes())


@pytest.mark.parametrize("name", ["bucket", "refuses"])
def test_offline_runs_reach_a_root_in_a_bucket_and_harm_nothing(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("MANTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Folder, "local", None)
    workspace = Workspace(Folder(Bucket(tmp_path / name), "models/base/1f"))
    for run in ("offline-run-1-1f", "offline-run-2-1f"):
        (workspace.path / "wandb" / run / "files").mkdir(parents=True)
        (workspace.path / "wandb" / run / "run-1f.wandb").write_text(run)
        (workspace.path / "wandb" / run / "files/config.yaml").write_text("a: 1")
    (workspace.path / "wandb/latest-run").symlink_to("offline-run-2-1f")
    publish_offline_runs(workspace)
    published = tmp_path / name / "models/base/1f/wandb"
    if name == "refuses":
        assert "stays on this machine" in capsys.readouterr().out
    else:
        assert (published / "offline-run-1-1f/run-1f.wandb").read_text() == "offline-run-1-1f"
        found = [path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()]
        assert sorted(found) == [
            f"offline-run-{number}-1f/{file}"
            for number in (1, 2)
            for file in ("files/config.yaml", "run-1f.wandb")
        ]
