"""Checkpoints of several processes: read on any number of them, or by one that has nothing but the folder."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from llm.models.load import build
from llm.training.checkpoint import load_checkpoint
from llm.training.checkpoint_ranks import RankGroup
from llm.training.checkpoint_saver import CheckpointSaver
from llm.training.checkpoint_tensors import named_tensors
from llm.training.checkpoint_weights import read_weights
from llm.training.checkpoint_writing import CheckpointPlace
from llm.training.loop import language_model_loss
from llm.training.optimizer import adamw
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights
from llm.training.step import train_step
from tests.unit.llm.training.checkpointed_run import CONFIG, micro_batches
from tests.unit.ranks import in_turn


def sharded(seed: int):
    model = build(CONFIG)
    shard(model, data_mesh(torch.device("cpu")), "bf16")
    model.to_empty(device="cpu")
    model.init_weights(seed)
    return model, adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))


def whole(model, optimizer):
    tensors = named_tensors(model, optimizer)
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for n, t in tensors.items()}


def save_and_train_on(folder: str):
    """Two steps, a checkpoint, and steps of which its collectives and its tensors must not take notice."""
    model, optimizer = sharded(seed=1)

    def step(number: int) -> None:
        share = micro_batches(number, dist.get_rank(), dist.get_world_size())
        train_step(model, optimizer, share, language_model_loss(model), 1e-2, clip_norm=1.0)

    with CheckpointSaver(CheckpointPlace(Path(folder), keep=2)) as saver:
        for number in range(2):
            step(number)
        expected, weights = whole(model, optimizer), gather_weights(model)
        saver.save(2, model, optimizer, {"data": {}}, {})
        for number in range(2, 6):
            step(number)
        saver.save(6, model, optimizer, {"data": {}}, {})
        for number in range(6, 8):
            step(number)
    return expected, weights


def load_it(folder: str):
    model, optimizer = sharded(seed=2)
    state = load_checkpoint(Path(folder) / "step-00000002", model, optimizer)
    return whole(model, optimizer), state["step"]


def failing(rank: int) -> str:
    """What each rank learns of an error of one."""

    def action() -> str:
        if dist.get_rank() == rank:
            raise OSError(28, "No space left on device")
        return "well"

    try:
        RankGroup().all_do(action)
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_saved_on_two_processes_loaded_on_one_two_and_three(tmp_path):
    folder = (str(tmp_path),)
    saved, *loaded, errors = in_turn(
        [
            (2, save_and_train_on, folder),
            *((world, load_it, folder) for world in (1, 2, 3)),
            (3, failing, (1,)),
        ]
    )
    expected, weights = saved[0]
    for tensors, step in (result for results in loaded for result in results):
        assert step == 2
        assert tensors.keys() == expected.keys()
        for name, value in tensors.items():
            assert torch.equal(value, expected[name]), name

    read = read_weights(tmp_path / "step-00000002")
    assert read.keys() == weights.keys()
    for name, value in read.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name]), name

    elsewhere = "RuntimeError: on rank 1: OSError: [Errno 28] No space left on device"
    assert errors == [elsewhere, "OSError: [Errno 28] No space left on device", elsewhere]

    next((tmp_path / "step-00000002/dcp").glob("*.distcp")).unlink()
    with pytest.raises(ValueError, match="step-00000002 is not a whole checkpoint"):
        read_weights(tmp_path / "step-00000002")
