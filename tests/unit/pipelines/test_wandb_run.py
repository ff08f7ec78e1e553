"""What goes to wandb: every record once, though a run that was set back measures its steps again."""

from unittest import mock

import wandb

from pipelines.pretrain.config import PretrainConfig
from pipelines.wandb_run import WandbRun


class Recording:
    """Stands for wandb's run."""

    def __init__(self, resumed_step: int | None = None) -> None:
        self.resumed = resumed_step is not None
        self.summary = {"step": resumed_step} if self.resumed else {}
        self.records: list[dict[str, float]] = []

    def log(self, record: dict[str, float]) -> None:
        self.records.append(record)


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
    assert asked["resume"] is None, "offline there is nothing to ask"
