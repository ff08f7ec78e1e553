"""Trained on 1, 2, 4 and then 3 workers with stops in between, a run sees one global stream of samples: that
of a run that was left alone.
"""

import contextlib

import numpy as np
import pytest
import torch

from llm.data.loader import TokenLoader
from llm.data.mixed_order import MixedOrder
from llm.data.mixture import Mixture
from llm.data.order import Order
from llm.data.shards import SHARDS_FILE, ShardWriter, TokenShards, shards_json
from llm.models.load import build
from llm.models.presets import model_config
from llm.training.loop import TrainingRun, train
from llm.training.loss import IGNORE
from llm.training.metrics_log import read_records
from llm.training.objectives import next_token
from llm.training.parallel.fsdp import data_mesh, shard
from pipelines.pretrain.batches import STEPS_AHEAD, GlobalBatches
from pipelines.pretrain.config import PretrainConfig
from pipelines.training_worker import my_share
from tests.unit.ranks import in_turn

VOCAB, SEQ_LEN, STEPS, GLOBAL_BATCH = 300, 8, 24, 10
MODEL = model_config("tiny-100k", vocab_size=VOCAB, d_model=32, d_ff=48)
CONFIG = PretrainConfig(
    model={"preset": "tiny-100k"},
    steps=STEPS,
    seq_len=SEQ_LEN,
    global_batch=GLOBAL_BATCH,
    micro_batch=2,
    checkpoint_every=3,
    evaluate_every=0,
    log_every=1,
)
STOPS = {1: 7, 2: 14, 4: 20, 3: None}
"""Workers → the step at which that run is stopped, some steps after a checkpoint."""


class Stopped(Exception):
    """Stands for whatever ends a run halfway."""


def write_source(root, documents, seed):
    random = np.random.default_rng(seed)
    with ShardWriter(root, "train", "00000", VOCAB, eos_id=3, shard_bytes=400) as writer:
        for _ in range(documents):
            length = int(random.integers(5, 60))
            writer.add(random.integers(4, VOCAB, length), length)
    (root / SHARDS_FILE).write_bytes(shards_json(VOCAB, "f" * 64, 3, {"train": writer.shards}))


def open_loader(folder):
    """Two sources, of which the smaller one is gone through several times, and a change of weights."""
    sources = [TokenShards.open(folder / name, "train") for name in ("web", "code")]
    orders = [Order(each.shard_tokens, SEQ_LEN, 1, 3, 2, source=each.fingerprint) for each in sources]
    mixture = Mixture([(0, (3, 1)), (100, (2, 5))])
    return TokenLoader(
        TokenShards.join(sources), MixedOrder(orders, [len(each) for each in sources], mixture)
    )


def run_until(folder, run_folder, stop):
    """On every rank: train from the newest checkpoint until `stop`; the rows that this rank learned from."""
    run_folder.mkdir(exist_ok=True)
    model = build(MODEL)
    shard(model, data_mesh(torch.device("cpu")), "fp32")
    model.to_empty(device="cpu")
    model.init_weights(seed=3)
    loader = open_loader(folder)
    expected = set()
    loader.expect = lambda start, count: expected.update(range(start, start + count))
    batches = GlobalBatches(loader, next_token, CONFIG, torch.device("cpu"))
    seen = {}

    def micro_batches(step):
        if step == stop:
            raise Stopped
        if seen:
            first, count, _ = my_share(GLOBAL_BATCH)
            starts = (ahead * GLOBAL_BATCH + first for ahead in range(step, min(step + STEPS_AHEAD, STEPS)))
            soon = {sample for start in starts for sample in range(start, start + count)}
            assert expected == soon, "what was sent for is what is read"
            expected.clear()
        parts = batches.micro_batches(step)
        seen[step] = torch.cat([tokens[(targets != IGNORE).any(1)] for tokens, targets in parts]).numpy()
        return parts

    run = TrainingRun(
        model=model,
        precision="fp32",
        recipe=CONFIG.recipe(STEPS),
        folder=run_folder,
        micro_batches=micro_batches,
        data_state=lambda steps: loader.state(steps * GLOBAL_BATCH),
        check_data_state=loader.check_state,
    )
    with contextlib.suppress(Stopped):
        train(run)
    return seen


def test_one_global_stream_on_1_2_4_and_then_3_workers(tmp_path):
    for number, (name, documents) in enumerate({"web": 60, "code": 9}.items()):
        (tmp_path / name).mkdir()
        write_source(tmp_path / name, documents, seed=number)
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    runs = [(1, run_until, (tmp_path, alone, None))]
    runs += [(workers, run_until, (tmp_path, stopped, stop)) for workers, stop in STOPS.items()]
    [undisturbed], *parts = in_turn(runs)

    stream = np.concatenate([undisturbed[step] for step in range(STEPS)])
    loader = open_loader(tmp_path)
    assert np.array_equal(stream, loader.batch(0, STEPS * GLOBAL_BATCH))
    assert loader.order.epochs(STEPS * GLOBAL_BATCH)[1] > 2

    steps_of = {}
    for workers, ranks in zip(STOPS, parts, strict=True):
        steps_of[workers] = min(ranks[0]), max(ranks[0])
        for step in ranks[0]:
            together = np.concatenate([seen[step] for seen in ranks])
            assert np.array_equal(together, undisturbed[step]), f"step {step} on {workers} workers"
    assert steps_of == {1: (0, 6), 2: (6, 13), 4: (12, 19), 3: (18, 23)}, "from the newest checkpoint on"

    losses, expected = (
        [record["loss"] for record in read_records(each / "metrics.jsonl")] for each in (stopped, alone)
    )
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(losses) == STEPS
