"""What goes to wandb: every record once, though a run that was set back measures its steps again."""

from pipelines.pretrain.config import PretrainConfig
from pipelines.wandb_run import WandbRun


class Recording:
    """Stands for wandb's run."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def log(self, record: dict[str, float]) -> None:
        self.records.append(record)


def test_a_step_that_is_repeated_is_logged_once(tmp_path, monkeypatch):
    recording = Recording()
    monkeypatch.setattr(WandbRun, "_open", lambda self: recording)
    run = WandbRun(PretrainConfig(wandb="offline"), "pretrain", tmp_path)
    first, checkpoint, second = (
        {"step": 10, "loss": 3.0},
        {"step": 10, "checkpoint_seconds": 0.5},
        {"step": 20, "loss": 2.0},
    )
    for record in (first, checkpoint, second, first, checkpoint, second, {"step": 30, "loss": 1.0}):
        run.log(record)
    assert recording.records == [first, checkpoint, second, {"step": 30, "loss": 1.0}]
