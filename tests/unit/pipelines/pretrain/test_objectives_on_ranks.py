"""Encoder-decoders and encoders learn from one stream too: stopped and resumed they are the same to the bit,
and on two workers they are given the same samples, with the same holes and masks.
"""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llm.data.loader import TokenLoader
from llm.data.shards import SHARDS_FILE, ShardWriter, TokenShards, shards_json
from llm.models.load import build
from llm.training.loop import TrainingRun, language_model_loss, train
from llm.training.loss import IGNORE
from llm.training.metrics_log import read_records
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights
from pipelines.pretrain.batches import GlobalBatches, objective_of
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.heldout import held_out
from pipelines.pretrain.token_source import order_of
from tests.unit.ranks import in_turn

VOCAB, STEPS, GLOBAL_BATCH, STOP = 300, 6, 5, 4
PRESETS = ("t5-tiny", "bert-tiny")
DEVICE = torch.device("cpu")


def config_of(preset, micro_batch):
    return PretrainConfig(
        model={"preset": preset, "d_model": 48 if preset == "t5-tiny" else 32, "d_ff": 48},
        steps=STEPS,
        seq_len=24,
        seed=5,
        global_batch=GLOBAL_BATCH,
        micro_batch=micro_batch,
        checkpoint_every=3,
        evaluate_every=3,
        evaluate_windows=3,
        log_every=1,
    )


class Stopped(Exception):
    """Stands for whatever ends a run halfway."""


def write_tokens(root):
    random, splits = np.random.default_rng(0), {}
    for split in ("train", "heldout"):
        with ShardWriter(root, split, "00000", VOCAB, eos_id=3, shard_bytes=600) as writer:
            for length in random.integers(5, 200, 20).tolist():
                writer.add(random.integers(8, VOCAB, length), length)
        splits[split] = writer.shards
    (root / SHARDS_FILE).write_bytes(shards_json(VOCAB, "f" * 64, 3, splits))


def run_until(root, name, stop, micro_batch):
    """On every rank: by preset, the micro-batches of each step that this rank learned from, its rows one
    below the other; the weights at the end; and what all held-out text says of them.
    """
    results = {}
    for preset in PRESETS:
        config, folder = config_of(preset, micro_batch), root / name / preset
        folder.mkdir(parents=True, exist_ok=True)
        model = build(config.trained_shape(VOCAB))
        shard(model, data_mesh(DEVICE), "fp32")
        model.to_empty(device="cpu")
        model.init_weights(seed=3)
        shards = TokenShards.open(root, "train")
        loader = TokenLoader(shards, order_of(config, [shards]))
        source = SimpleNamespace(loader=loader, heldout={"mine": TokenShards.open(root, "heldout")})
        batches = GlobalBatches(loader, objective_of(config, VOCAB, config.seed), config, DEVICE)
        seen = {}

        def micro_batches(step, seen=seen, batches=batches):
            if step == stop:
                raise Stopped
            parts = batches.micro_batches(step)
            rows = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
            learned = (rows[-1] != IGNORE).any(1)
            seen[step] = [tensor[learned] for tensor in rows]
            return parts

        heldout = held_out(model, source, config, None)
        run = TrainingRun(
            model=model,
            precision="fp32",
            recipe=config.recipe(STEPS),
            folder=folder,
            micro_batches=micro_batches,
            data_state=lambda steps, loader=loader: loader.state(steps * GLOBAL_BATCH),
            check_data_state=loader.check_state,
            evaluate=heldout.in_training,
            loss_sum=language_model_loss(model),
        )
        with contextlib.suppress(Stopped):
            train(run)
        results[preset] = seen, gather_weights(model), heldout.at_the_end()
    return results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_tokens(root)
    arguments = [(1, "alone", None, 2), (1, "stopped", STOP, 2), (1, "stopped", None, 2), (2, "two", None, 3)]
    done = in_turn([(world, run_until, (root, *rest)) for world, *rest in arguments])
    return root, dict(zip(("alone", "begun", "resumed", "two"), done, strict=True))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resumed_run_is_the_same_to_the_bit(runs, preset):
    root, ranks = runs
    [alone], [resumed] = ([rank[preset] for rank in ranks[name]] for name in ("alone", "resumed"))
    assert min(resumed[0]) == STOP - 1, "from the newest checkpoint on"
    for step, tensors in resumed[0].items():
        assert all(map(torch.equal, tensors, alone[0][step]))
    assert all(torch.equal(value, alone[1][name]) for name, value in resumed[1].items())
    assert resumed[2] == alone[2]
    logs = [(root / name / preset / "metrics.jsonl").read_bytes() for name in ("alone", "stopped")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("preset", PRESETS)
def test_two_workers_learn_the_same_from_the_same(runs, preset):
    root, ranks = runs
    [alone], two = ([rank[preset] for rank in ranks[name]] for name in ("alone", "two"))
    for step in range(STEPS):
        together = [torch.cat(tensors) for tensors in zip(*(rank[0][step] for rank in two), strict=True)]
        assert all(map(torch.equal, together, alone[0][step])), f"step {step}"
    records, expected = (read_records(root / name / preset / "metrics.jsonl") for name in ("two", "alone"))
    for name in ("loss", "heldout_loss"):
        found, wanted = ([r[name] for r in each if name in r] for each in (records, expected))
        assert found == pytest.approx(wanted, rel=1e-4)
    assert [r["tokens"] for r in records] == [r["tokens"] for r in expected]
    assert two[0][2] == two[1][2] == pytest.approx(alone[2], rel=1e-4)
    assert ("heldout_accuracy" in alone[2]) == (preset == "bert-tiny")


def test_held_out_text_is_asked_the_same_of_runs_of_any_seed(runs):
    """And all of it at the end."""
    root, ranks = runs
    for preset in PRESETS:
        [(_, weights, at_the_end)] = [rank[preset] for rank in ranks["alone"]]
        config = config_of(preset, 4).model_copy(update={"seed": 99})
        model = build(config.trained_shape(VOCAB)).to_empty(device="cpu")
        model.load_state_dict(weights)
        shards = TokenShards.open(root, "train")
        source = SimpleNamespace(
            loader=SimpleNamespace(shards=shards), heldout={"mine": TokenShards.open(root, "heldout")}
        )
        assert held_out(model, source, config, None).at_the_end() == pytest.approx(at_the_end, rel=1e-5)
