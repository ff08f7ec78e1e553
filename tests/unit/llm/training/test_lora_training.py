"""Adapters learn the same on one process and on two, in one go and with a stop; only they are kept."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from llm.models.decoder import Decoder
from llm.models.load import build
from llm.models.lora import add_adapters, initial_adapters
from llm.models.lora_config import LoraConfig
from llm.models.presets import model_config
from llm.training.checkpoint import newest_checkpoint
from llm.training.checkpoint_files import SafeReader
from llm.training.loop import TrainingRun, language_model_loss, train
from llm.training.loss import next_token_targets
from llm.training.optimizer import adamw
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights, scatter_weights
from llm.training.step import train_step
from tests.unit.llm.training.checkpointed_run import RECIPE
from tests.unit.ranks import in_turn

CONFIG = model_config("tiny-100k", vocab_size=100, d_model=32, d_ff=48, n_kv_heads=2, n_heads=4)
LORA = LoraConfig(rank=3, alpha=6)
STEPS, SEQUENCES, LENGTH = 8, 8, 10


def base_weights():
    model = Decoder(CONFIG)
    model.init_weights(seed=3)
    return model.state_dict()


def new_model(precision=None):
    """A model with fresh adapters; sharded, if a precision is given."""
    torch.set_num_threads(1)
    model = build(CONFIG)
    add_adapters(model, LORA)
    if precision is not None:
        shard(model, data_mesh(torch.device("cpu")), precision)
    model.to_empty(device="cpu")
    scatter_weights(model, base_weights() | initial_adapters(model, seed=4))
    return model


def batch(step: int):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(CONFIG.vocab_size, (SEQUENCES, LENGTH), generator=generator)
    learned = torch.rand(tokens.shape, generator=generator) < torch.linspace(0.1, 1, SEQUENCES).unsqueeze(1)
    return tokens, next_token_targets(tokens, learned)


def learn(precision=None):
    """Losses and gradient norms of a run over this rank's share, in two micro-batches, and its weights."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = new_model(precision)
    with torch.no_grad():
        model(batch(0)[0])  # An evaluation before the optimizer exists must leave nothing behind.
    optimizer = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    share = SEQUENCES // world
    seen = []
    for step in range(STEPS):
        tokens, targets = (t[rank * share : (rank + 1) * share] for t in batch(step))
        halves = list(zip(tokens.split(share // 2), targets.split(share // 2), strict=True))
        result = train_step(model, optimizer, halves, language_model_loss(model), 1e-2, clip_norm=0.5)
        seen.append((result.loss, result.grad_norm))
    without_gradient = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.grad is None and p not in optimizer.state for p in without_gradient)
    return torch.tensor(seen), gather_weights(model)


def test_two_fsdp_processes_equal_one_plain_process_and_bf16_follows():
    """FSDP groups hold frozen weights beside trained ones, and the root's group frozen ones alone."""
    expected_curve, expected = learn()
    (two, _), (two_bf16, _) = in_turn([(2, learn, ("fp32",)), (2, learn, ("bf16",))])
    curve, weights = two
    torch.testing.assert_close(curve, expected_curve, rtol=1e-4, atol=0)
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    curve, weights = two_bf16
    assert 1e-6 < (curve - expected_curve)[:, 0].abs().max() < 0.1
    for name, value in base_weights().items():
        assert torch.equal(weights[name], value), name


class Killed(Exception):
    pass


def a_run(folder, stop_at=None) -> TrainingRun:
    """A run that dies while it fetches the batch of 0-based step `stop_at`."""

    def micro_batches(step: int):
        if step == stop_at:
            raise Killed
        return [batch(step)]

    recipe = dataclasses.replace(
        RECIPE,
        steps=STEPS,
        minimum_learning_rate=0.0,
        warmup_steps=2,
        decay="cosine",
        embedding_scale=1.0,
        head_scale=1.0,
        evaluate_every=0,
        checkpoint_every=3,
        keep_checkpoints=1,
    )
    return TrainingRun(
        model=new_model(),
        precision="fp32",
        recipe=recipe,
        folder=folder,
        micro_batches=micro_batches,
        data_state=lambda steps: {},
        check_data_state=lambda state: None,
    )


def test_a_resumed_run_equals_an_undisturbed_one_and_keeps_adapters_alone(tmp_path):
    whole = a_run(tmp_path)
    train(whole)
    (tmp_path / "stopped").mkdir()
    with pytest.raises(Killed):
        train(a_run(tmp_path / "stopped", stop_at=5))
    resumed = a_run(tmp_path / "stopped")
    train(resumed)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    assert (resumed.folder / "metrics.jsonl").read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()
    kept = SafeReader(newest_checkpoint(whole.checkpoints) / "dcp").read_metadata().state_dict_metadata
    trained = len([name for name in whole.model.state_dict() if ".adapters." in name])
    assert len(kept) == 4 * trained, "values, two moments and a step each"
    assert all(".adapters." in name for name in kept)
