"""Workers of any number read one stream of samples; a step begins where the one before it ended."""

import numpy as np
import pytest

from llm.data.loader import TokenLoader
from llm.data.order import Order
from llm.data.shards import SHARDS_FILE, ShardWriter, TokenShards, shards_json
from pipelines import training_worker

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
