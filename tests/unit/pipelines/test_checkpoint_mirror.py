"""Checkpoints of a run in a folder and in a bucket, looked at from elsewhere."""

import uuid
from pathlib import Path

import pytest
import torch

from cluster.artifacts.folder import Folder
from cluster.artifacts.storage import open_storage
from cluster.artifacts.workspace import Workspace
from cluster.errors import UserError
from llm.training.checkpoint_weights import read_weights
from llm.training.loop import TrainingRun, train
from llm.training.metrics_log import read_records
from pipelines.checkpoint_mirror import kept_checkpoint, mirror_of
from tests.object_storage import BUCKET
from tests.unit.llm.training.checkpointed_run import a_run, micro_batches

LOGS = ("metrics.jsonl", "timing.jsonl")
MODEL = "models/base/1a0a"


def interrupted(folder: Folder, at: int) -> TrainingRun:
    """A run of which checkpoints are left, and no more."""

    def deadly(step: int):
        if step == at:
            raise KeyboardInterrupt
        return micro_batches(step)

    workspace = Workspace(folder)
    run = a_run(workspace.path, micro_batches=deadly, mirror=mirror_of(workspace, LOGS))
    with pytest.raises(KeyboardInterrupt):
        train(run)
    return run


def test_any_that_is_kept_can_be_read(tmp_path: Path) -> None:
    folder = Folder(open_storage(tmp_path), MODEL)
    with pytest.raises(UserError, match="no whole checkpoint"):
        kept_checkpoint(folder)
    at_8 = interrupted(folder, at=8).model.state_dict()
    assert kept_checkpoint(folder, step=4).name == "step-00000004"
    with pytest.raises(UserError, match="no whole checkpoint of step 5"):
        kept_checkpoint(folder, step=5)
    read = read_weights(kept_checkpoint(folder))
    assert read.keys() == at_8.keys()
    assert all(torch.equal(value, at_8[name]) for name, value in read.items())


def test_a_bucket_has_the_checkpoint_and_the_metrics_before_it(
    object_storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MANTA_CACHE", str(tmp_path / "here"))
    folder = Folder(open_storage(f"s3://{BUCKET}/{uuid.uuid4().hex}"), MODEL)
    at_8 = interrupted(folder, at=8).model.state_dict()

    monkeypatch.setenv("MANTA_CACHE", str(tmp_path / "elsewhere"))
    read = read_weights(kept_checkpoint(folder))
    assert all(torch.equal(value, at_8[name]) for name, value in read.items())
    workspace = Workspace(folder)
    workspace.restore(list(LOGS))
    assert [record["step"] for record in read_records(workspace.path / "metrics.jsonl")] == list(range(1, 9))
