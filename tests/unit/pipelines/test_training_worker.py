"""Workers of any number read one stream of samples; a step begins where the one before it ended. A run keeps
the precision that it was begun in, whichever machine it goes on on.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cluster.artifacts.folder import Folder
from cluster.artifacts.storage import open_storage
from cluster.artifacts.workspace import Workspace
from cluster.errors import UserError
from llm.data.loader import TokenLoader
from llm.data.order import Order
from llm.data.shards import SHARDS_FILE, ShardWriter, TokenShards, shards_json
from llm.training import precision
from llm.training.step import NonFiniteError
from pipelines import training_worker
from pipelines.parallel_config import ParallelConfig
from pipelines.training_end import Final
from pipelines.training_launch import FATAL

GLOBAL_BATCH, STEPS = 12, 6


@pytest.fixture
def loader(tmp_path):
    with ShardWriter(tmp_path, "train", "00000", 300, eos_id=3, shard_bytes=64) as writer:
        for length in (40, 7, 93, 60, 21, 33):
            writer.add(np.arange(4, 4 + length), length)
    (tmp_path / SHARDS_FILE).write_bytes(shards_json(300, "f" * 64, 3, {"train": writer.shards}))
    shards = TokenShards.open(tmp_path, "train")
    return TokenLoader(shards, Order(shards.shard_tokens, 8, 1, block_samples=3, window_blocks=2))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 7, 12])
def test_one_stream_for_any_number_of_workers(loader, world_size, monkeypatch):
    rows = []
    monkeypatch.setattr(training_worker.dist, "get_world_size", lambda: world_size)
    for step in range(STEPS):
        for rank in range(world_size):
            monkeypatch.setattr(training_worker.dist, "get_rank", lambda rank=rank: rank)
            first, count, missing = training_worker.my_share(GLOBAL_BATCH)
            assert count + missing == -(-GLOBAL_BATCH // world_size), "all ranks are equally long"
            rows.append(loader.batch(step * GLOBAL_BATCH + first, count))
    assert loader.order.samples_per_epoch < GLOBAL_BATCH * STEPS, "it goes on beyond one epoch"
    assert np.array_equal(np.concatenate(rows), loader.batch(0, GLOBAL_BATCH * STEPS))


def test_workers_that_divide_a_model_read_the_same(monkeypatch):
    monkeypatch.setattr(training_worker.dist, "get_world_size", lambda: 8)
    parallel, shares = ParallelConfig(replicate=2, tensor=2), []
    for rank in range(8):
        monkeypatch.setattr(training_worker.dist, "get_rank", lambda rank=rank: rank)
        shares.append(training_worker.my_share(10, parallel))
    assert shares[0::2] == shares[1::2] == [(0, 2, 1), (2, 3, 0), (5, 2, 1), (7, 3, 0)]


def a_job(root, state=None, extends=None):
    folder = Folder(open_storage(root), "models/base/1a0a")
    if state is not None:
        folder.write("checkpoints/step-00000040/state.json", json.dumps({"step": 40, **state}).encode())
    return SimpleNamespace(
        config=SimpleNamespace(precision="auto"),
        workspace=Workspace(folder),
        inputs={}
        if extends is None
        else {"extends": SimpleNamespace(ref="models/base/77c2", counts=extends)},
    )


@pytest.mark.parametrize(
    "state, extends, native, expected",
    [
        (None, None, True, "bf16"),
        (None, None, False, "fp32"),
        ({"precision": "fp32"}, None, True, "fp32"),
        ({"precision": "bf16"}, None, True, "bf16"),
        ({"precision": "bf16"}, None, False, "models/base/1a0a was trained in bf16, .* would use fp32"),
        ({}, None, True, "bf16"),  # written by an earlier version
        (None, {"precision": "fp32"}, True, "fp32"),
        (None, {"precision": "bf16"}, False, "models/base/77c2 was trained in bf16"),
        ({"precision": "fp32"}, {"precision": "fp32"}, True, "fp32"),
    ],
)
def test_a_run_keeps_its_precision_or_says_why_it_cannot(
    state, extends, native, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(precision, "has_native_bf16", lambda device: native)
    job, cpu = a_job(tmp_path, state, extends), torch.device("cpu")
    if expected in ("bf16", "fp32"):
        assert training_worker.run_precision(job, cpu) == expected
    else:
        with pytest.raises(UserError, match=expected) as error:
            training_worker.run_precision(job, cpu)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("error, place", [(UserError, "rank 5 (on node-b): "), (NonFiniteError, "")])
@pytest.mark.parametrize("workers_here", [4, 8])
def test_what_one_worker_of_several_machines_meets_names_its_machine(
    error, place, workers_here, tmp_path, monkeypatch
):
    """What all meet does not, and that they are on one machine needs no name."""
    told = []
    context = SimpleNamespace(get_local_world_size=lambda: workers_here, get_world_size=lambda: 8)
    board = SimpleNamespace(post=SimpleNamespace(remote=told.append))
    monkeypatch.setattr(training_worker, "get_context", lambda: context)
    monkeypatch.setattr(training_worker, "this_host", lambda: "node-b")
    monkeypatch.setattr(training_worker, "assigned_device", lambda: "cpu")
    monkeypatch.setattr(training_worker.ray, "get", lambda told: told)
    monkeypatch.setattr(training_worker.dist, "get_rank", lambda: 5)
    config = SimpleNamespace(deterministic=False)
    job = SimpleNamespace(threads=1, config=config, workspace=SimpleNamespace(path=tmp_path), board=board)
    with pytest.raises(Final), training_worker.training_worker(job):
        raise error("part-00000.tok is not as recorded")
    assert told == [{FATAL: f"{place if workers_here == 4 else ''}part-00000.tok is not as recorded"}]
