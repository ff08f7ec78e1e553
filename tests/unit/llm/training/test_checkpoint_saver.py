"""What is written beside training is the state of one moment; it is committed once, or not at all."""

import dataclasses
import errno
import json
import threading
import time
from pathlib import Path

import pytest
import torch

from cluster.artifacts.files import explain_full_disk
from cluster.errors import StorageError
from llm.training import checkpoint_writing
from llm.training.checkpoint import load_checkpoint, newest_checkpoint
from llm.training.checkpoint_manifest import what_is_wrong
from llm.training.checkpoint_saver import CheckpointSaver
from llm.training.checkpoint_tensors import named_tensors
from llm.training.checkpoint_writing import CheckpointPlace, save_checkpoint
from llm.training.loop import train
from llm.training.metrics_log import read_records
from llm.training.optimizer import adamw
from llm.training.recorder import Superseded
from tests.unit.llm.training.checkpointed_run import RECIPE, FolderMirror, a_run, assert_same, micro_batches

PATIENCE = 30.0
STATE = {"data": {"samples_consumed": 16}}


class Gate:
    """Lets nothing through until it is opened; a place asks it whether it may write."""

    def __init__(self) -> None:
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def __call__(self) -> bool:
        assert self._opened.wait(PATIENCE), "the gate was never opened"
        return True


def model_and_optimizer(folder: Path):
    model = a_run(folder).model
    return model, adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))


def fill(tensors, seed: int):
    """New values in place; returns copies of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_holds(checkpoint: Path, expected, scratch: Path) -> None:
    model, optimizer = model_and_optimizer(scratch)
    load_checkpoint(checkpoint, model, optimizer)
    for name, value in named_tensors(model, optimizer).items():
        assert torch.equal(value, expected[name]), name


def test_what_changes_after_the_call_is_not_in_the_checkpoint(tmp_path):
    """Twice: the second one is copied into the memory of the first."""
    model, optimizer = model_and_optimizer(tmp_path)
    tensors, attachments, state, expected = named_tensors(model, optimizer), {"a": b"old"}, {"n": [1]}, {}
    gate = Gate()
    with CheckpointSaver(CheckpointPlace(tmp_path, keep=2, may_write=gate)) as saver:
        for step in (4, 8):
            expected[step] = fill(tensors, seed=step)
            attachments["a"], state["n"] = b"old", [1]
            saver.save(step, model, optimizer, state, attachments)
            fill(tensors, seed=99)
            attachments["a"] = b"new"
            state["n"].append(2)
            gate.open()
    for step in (4, 8):
        checkpoint = tmp_path / f"step-{step:08d}"
        assert what_is_wrong(checkpoint) is None
        assert_holds(checkpoint, expected[step], tmp_path)
        assert json.loads((checkpoint / "state.json").read_bytes()) == {"step": step, "n": [1]}
        assert (checkpoint / "a").read_bytes() == b"old"


def test_training_goes_on_meanwhile_and_learns_the_same(tmp_path):
    """The upload of step 4 waits for step 7, which a run that waited for the upload would never reach."""
    gate = Gate()

    def opening(step: int):
        if step == 6:
            gate.open()
        return micro_batches(step)

    mirror = FolderMirror(tmp_path / "mirror", before_upload=lambda name: gate())
    beside = a_run(tmp_path / "beside", micro_batches=opening, mirror=mirror)
    train(beside)
    waiting = a_run(tmp_path / "waiting", recipe=dataclasses.replace(RECIPE, checkpoint_async=False))
    train(waiting)
    assert_same(beside, waiting)
    ours, theirs = (newest_checkpoint(run.checkpoints) for run in (beside, waiting))
    assert ours.name == theirs.name == "step-00000012"
    assert (ours / "dcp/__0_0.distcp").read_bytes() == (theirs / "dcp/__0_0.distcp").read_bytes()
    assert mirror.names() == ["step-00000012", "step-00000008"]
    told = [each for each in read_records(beside.folder / "timing.jsonl") if "checkpoint_seconds" in each]
    assert [each["step"] for each in told] == [4, 8, 12]
    assert 0 < told[0]["checkpoint_seconds"] < told[0]["checkpoint_commit_seconds"]


def test_the_next_save_waits_for_the_last(tmp_path):
    model, optimizer = model_and_optimizer(tmp_path)
    gate = Gate()
    with CheckpointSaver(CheckpointPlace(tmp_path, keep=3, may_write=gate)) as saver:
        saver.save(4, model, optimizer, STATE, {})
        saver.check()  # which does not wait
        second = threading.Thread(target=saver.save, args=(8, model, optimizer, STATE, {}))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        gate.open()
        second.join(PATIENCE)
        assert what_is_wrong(tmp_path / "step-00000004") is None
    assert what_is_wrong(tmp_path / "step-00000008") is None


def test_a_full_disk_ends_the_run_in_one_line(tmp_path, monkeypatch):
    """It is found out beside training; the run learns of it a step later, not at its end."""

    class FullDisk(checkpoint_writing.FileSystemWriter):
        def write_data(self, plan, planner):
            if "step-00000008" in str(self.path):
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write_data(plan, planner)

    monkeypatch.setattr(checkpoint_writing, "FileSystemWriter", FullDisk)
    recipe = dataclasses.replace(RECIPE, steps=1000, checkpoint_every=4)
    with (
        pytest.raises(StorageError, match="the disk is full") as error,
        explain_full_disk(tmp_path),
    ):
        train(a_run(tmp_path, recipe=recipe))
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_an_error_of_training_waits_for_the_checkpoint_in_the_making(tmp_path):
    def interrupted(step: int):
        if step == 5:
            raise KeyboardInterrupt
        return micro_batches(step)

    def slow(name: str) -> None:
        time.sleep(0.3)

    mirror = FolderMirror(tmp_path / "mirror", before_upload=slow)
    with pytest.raises(KeyboardInterrupt):
        train(a_run(tmp_path, micro_batches=interrupted, mirror=mirror))
    assert mirror.names() == ["step-00000004"]


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_who_was_taken_over_commits_nothing(tmp_path, answers):
    """The run is taken over before the writing, before the upload, or before the commit."""
    model, optimizer = model_and_optimizer(tmp_path)
    kept = tmp_path / "checkpoints"
    mirror = FolderMirror(tmp_path / "mirror")
    save_checkpoint(CheckpointPlace(kept, 1, mirror=mirror), 4, model, optimizer, STATE, {})
    asked = iter([True] * answers + [False] * 9)
    place = CheckpointPlace(kept, 1, mirror=mirror, may_write=lambda: next(asked))
    with pytest.raises(Superseded), CheckpointSaver(place) as saver:
        saver.save(8, model, optimizer, STATE, {})
    assert [path.name for path in kept.iterdir()] == ["step-00000004"]
    assert mirror.names() == ["step-00000004"]
    assert (mirror.root / "step-00000008").exists() == (answers == 2)


def test_a_late_writer_does_not_touch_what_its_successor_made_of_the_same_step(tmp_path):
    """The first is held up while it writes; the second comes, writes that very step, and goes."""
    model, optimizer = model_and_optimizer(tmp_path)
    tensors = named_tensors(model, optimizer)
    fill(tensors, seed=1)
    begun, resumed = threading.Event(), threading.Event()
    answers = iter([True, False])

    def may_write() -> bool:
        answer = next(answers)
        if not answer:
            begun.set()
            assert resumed.wait(PATIENCE)
        return answer

    late = CheckpointSaver(CheckpointPlace(tmp_path, 2, may_write=may_write))
    late.save(4, model, optimizer, STATE, {})
    assert begun.wait(PATIENCE)
    expected = fill(tensors, seed=2)
    save_checkpoint(CheckpointPlace(tmp_path, 2), 4, model, optimizer, STATE, {})
    resumed.set()
    with pytest.raises(Superseded), late:
        late.wait()
    assert [path.name for path in tmp_path.glob("*step-*")] == ["step-00000004"]
    assert what_is_wrong(tmp_path / "step-00000004") is None
    assert_holds(tmp_path / "step-00000004", expected, tmp_path)


def test_some_are_kept_for_ever(tmp_path):
    recipe = dataclasses.replace(RECIPE, checkpoint_every=2, keep_checkpoints=1, keep_every=6, steps=16)
    mirror = FolderMirror(tmp_path / "mirror")
    run = a_run(tmp_path / "bucket", recipe=recipe, mirror=mirror)
    train(run)
    kept = [f"step-000000{step}" for step in ("16", "12", "06")]
    assert mirror.names() == kept
    assert [path.name for path in run.checkpoints.iterdir()] == kept[:1], "copies need not stay"
    local = a_run(tmp_path / "local", recipe=recipe)
    train(local)
    assert sorted((path.name for path in local.checkpoints.iterdir()), reverse=True) == kept
