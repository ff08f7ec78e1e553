"""Seconds go to the part of a step in which they went by."""

import time

import pytest
import torch

from llm.training.loop import train
from llm.training.metrics_log import read_records
from llm.training.step_split import StepSplit
from tests.unit.llm.training.checkpointed_run import RECIPE, a_run


class SlowBack(torch.autograd.Function):
    """Its backward pass sleeps."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.06)
        return gradient


@pytest.mark.parametrize("with_z_loss", [False, True])
def test_each_part_has_its_own_seconds(with_z_loss):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight])
    split = StepSplit(torch.device("cpu"))
    split.optimizer(optimizer)
    optimizer.register_step_pre_hook(lambda *_: time.sleep(0.09))

    def loss_sum(x):
        time.sleep(0.03)
        loss = SlowBack.apply((weight * x).sum())
        return (loss, torch.zeros(())) if with_z_loss else loss

    timed = split.forward(loss_sum)
    began = time.perf_counter()
    for _ in range(2):
        result = timed(torch.ones(3))
        time.sleep(0.04)  # which belongs to no part
        (result[0] if with_z_loss else result).backward()
    optimizer.step()
    wall = time.perf_counter() - began
    with torch.no_grad():
        timed(torch.ones(3))  # an evaluation, which is no part of a step
    parts = split.take()
    assert parts.keys() == {"forward_seconds", "backward_seconds", "optimizer_seconds"}
    for name, slept in (("forward", 0.06), ("backward", 0.12), ("optimizer", 0.09)):
        assert slept <= parts[f"{name}_seconds"] <= wall - (0.35 - slept), name
    assert split.take() == {}


def test_a_run_tells_the_parts_of_its_steps_and_its_memory(tmp_path):
    run = a_run(tmp_path)
    train(run)
    flushes = [record for record in read_records(tmp_path / "timing.jsonl") if "seconds" in record]
    for record in flushes:
        parts = [record[f"{part}_seconds"] for part in ("data_wait", "forward", "backward", "optimizer")]
        assert min(parts) > 0
        assert sum(parts) < record["seconds"]
        assert record["peak_memory_bytes"] > 2**24
    assert sum(record["seconds"] > 0 for record in flushes) >= RECIPE.steps // RECIPE.flush_every
