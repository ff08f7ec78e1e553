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


def test_a_checkpoint_that_was_committed_late_does_not_set_the_watcher_back(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    recorder = Recorder(tmp_path, 0, flush_every=2, watcher=told.append, may_write=lambda: True)
    for step in range(1, 5):
        recorder.record({"step": step, "tokens": 10}, 1.0, data_wait=0.0)
    recorder.checkpointed(2, 0.25, 5.0)
    for step in (5, 6):
        recorder.record({"step": step, "tokens": 10}, 1.0, data_wait=0.0)
    recorder.checkpointed(6, 0.5, 0.5)
    late = {"checkpoint_seconds": 0.25, "checkpoint_commit_seconds": 5.0}
    assert [record["step"] for record in told] == [2, 4, 6, 6]
    assert [late.items() <= record.items() for record in told] == [False, False, True, False]
    assert {"step": 2, **late} in read_records(tmp_path / "timing.jsonl")


def test_a_run_that_was_taken_over_leaves_the_logs_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(Superseded):
        Recorder(tmp_path, 0, flush_every=2, watcher=lambda metrics: None, may_write=lambda: False)
    assert read_records(tmp_path / "metrics.jsonl") == [{"step": 1}]
