"""A notice makes all ranks save after the same step, and nothing that is learned depends on it."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llm.models.load import build
from llm.training import last_checkpoints
from llm.training.checkpoint_saver import CheckpointSaver
from llm.training.loop import train
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.watch import Observer
from tests.unit.llm.training.checkpointed_run import CONFIG, RECIPE, a_run, assert_same, micro_batches
from tests.unit.llm.training.on_ranks import on_ranks

NEVER = dataclasses.replace(RECIPE, checkpoint_every=100, keep_checkpoints=20, evaluate_every=0)
NOTICE, KILLED = 5, 10


class Killed(Exception):
    pass


def killed_after_a_notice(folder: str, background: bool) -> tuple[list[int], list[int]]:
    """Steps of which checkpoints were begun, and those at which this rank was asked for a notice."""
    model = build(CONFIG)
    shard(model, data_mesh(torch.device("cpu")), "fp32")
    model.to_empty(device="cpu")
    model.init_weights(seed=1)
    last_checkpoints._SHARE = 1e9  # These steps are no longer than what they are held up.
    begun, asked, taken = [], [], 0
    save = CheckpointSaver.save

    def saved(self, step, *arguments):
        begun.append(step)
        save(self, step, *arguments)

    CheckpointSaver.save = saved

    def share(step):
        nonlocal taken
        if step == KILLED:
            raise Killed
        taken = step + 1
        return micro_batches(step, dist.get_rank(), dist.get_world_size())

    def noticed() -> bool:
        asked.append(taken)
        return taken >= NOTICE

    run = a_run(
        Path(folder),
        model=model,
        recipe=dataclasses.replace(NEVER, checkpoint_async=background),
        micro_batches=share,
        evaluate=dict,
        observer=Observer(noticed=noticed),
    )
    with pytest.raises(Killed):
        train(run)
    return begun, asked


@pytest.mark.parametrize("background", [True, False])
def test_all_ranks_save_after_the_step_that_follows_a_notice(tmp_path, background):
    (begun, asked), (elsewhere, not_asked) = on_ranks(2, killed_after_a_notice, str(tmp_path), background)
    assert begun == elsewhere
    assert begun[0] == NOTICE + 1
    assert asked[: NOTICE - 1] == [1, 2, 3, 4]
    assert not not_asked
    if not background:  # One that is being written is not followed by another; here none ever is.
        assert begun == [6, 8, 10]


def test_a_run_goes_on_from_there_as_if_nothing_had_been(tmp_path):
    undisturbed = a_run(tmp_path / "undisturbed", recipe=NEVER)
    train(undisturbed)

    def share(step):
        if step == KILLED:
            raise Killed
        return micro_batches(step)

    noticed = Observer(noticed=lambda: True)
    killed = a_run(tmp_path / "run", recipe=NEVER, micro_batches=share, observer=noticed)
    with pytest.raises(Killed):
        train(killed)
    steps = []

    def counted(step):
        steps.append(step)
        return micro_batches(step)

    run = a_run(tmp_path / "run", recipe=NEVER, micro_batches=counted)
    train(run)
    assert 0 < steps[0] <= KILLED
    assert_same(run, undisturbed)


def test_saving_takes_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(last_checkpoints.time, "monotonic", lambda: now)
    last = last_checkpoints.LastCheckpoints(lambda: True)
    due = []
    for step in range(1, 60):
        now += 1.0
        if last.due(step):
            due.append(step)
            last.saving(step)
            now += 2.0
            last.saved(step, held_up=2.0)
    assert due == [2, 23, 44]  # 20 seconds later, and the step after that.


def test_one_that_is_told_late_does_not_hide_the_next():
    last = last_checkpoints.LastCheckpoints(lambda: True)
    last.saving(3)
    last.saving(6)
    last.saved(3, held_up=0.0)
    assert not any(last.due(step) for step in (7, 8))
    last.saved(6, held_up=0.0)
    assert [last.due(step) for step in (9, 10)] == [False, True]
