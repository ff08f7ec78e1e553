"""Clock readings go to timing.jsonl and to the watcher, never to metrics.jsonl."""

from pathlib import Path
from typing import Any

import pytest

from llm.training.metrics_log import read_records
from llm.training.recorder import Recorder, Superseded


def test_speed_waiting_and_checkpoints_are_told(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    recorder = Recorder(tmp_path, 0, flush_every=2, watcher=told.append, may_write=lambda: True)
    steps = [{"step": 1, "tokens": 10, "loss": 3.0}, {"step": 2, "tokens": 30, "loss": 2.0}]
    for metrics, seconds in zip(steps, (1.0, 3.0), strict=True):
        recorder.record(metrics, seconds, data_wait=0.25)
    recorder.checkpointed(2, 0.25, 0.75)

    speed = {"seconds": 4.0, "data_wait_seconds": 0.5, "tokens_per_s": 10.0}
    checkpoint = {"step": 2, "checkpoint_seconds": 0.25, "checkpoint_commit_seconds": 0.75}
    assert read_records(tmp_path / "metrics.jsonl") == steps
    assert read_records(tmp_path / "timing.jsonl") == [{"step": 2, **speed}, checkpoint]
    assert steps[1] | speed in told
    assert checkpoint in told


def test_a_run_that_was_taken_over_leaves_the_logs_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(Superseded):
        Recorder(tmp_path, 0, flush_every=2, watcher=lambda metrics: None, may_write=lambda: False)
    assert read_records(tmp_path / "metrics.jsonl") == [{"step": 1}]
