"""One plain process and two FSDP processes must learn the same thing."""

import pytest
import torch
import torch.distributed as dist

from llm.models.decoder import Decoder
from llm.models.load import build
from llm.models.presets import model_config
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets
from llm.training.optimizer import adamw
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights
from llm.training.step import train_step
from tests.unit.ranks import on_ranks

CONFIG = model_config("tiny-100k", vocab_size=100, d_model=32, d_ff=48)
STEPS, SEQUENCES, LENGTH = 12, 8, 10


def batch(step: int):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(CONFIG.vocab_size, (SEQUENCES, LENGTH), generator=generator)
    learned = torch.rand(tokens.shape, generator=generator) < torch.linspace(0.1, 1, SEQUENCES).unsqueeze(1)
    return tokens, next_token_targets(tokens, learned)


def curve(model, rank: int, world: int):
    """Losses and gradient norms of a rank's run over its share, in two micro-batches."""
    optimizer = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    share = SEQUENCES // world
    seen = []
    for step in range(STEPS):
        tokens, targets = (t[rank * share : (rank + 1) * share] for t in batch(step))
        halves = list(zip(tokens.split(share // 2), targets.split(share // 2), strict=True))
        result = train_step(model, optimizer, halves, language_model_loss(model), 1e-2, clip_norm=0.5)
        seen.append((result.loss, result.grad_norm))
    return seen


def sharded(precision: str):
    """Losses and gradient norms of this rank, and the weights after its run."""
    model = build(CONFIG)
    shard(model, data_mesh(torch.device("cpu")), precision)
    model.to_empty(device="cpu")
    model.init_weights(seed=3)
    with torch.no_grad():
        model(batch(0)[0])  # An evaluation before the optimizer exists must leave nothing behind.
    return curve(model, dist.get_rank(), dist.get_world_size()), gather_weights(model)


@pytest.fixture(scope="module")
def plain():
    torch.set_num_threads(1)
    model = Decoder(CONFIG)
    model.init_weights(seed=3)
    return curve(model, rank=0, world=1), model.state_dict()


def test_two_fsdp_processes_equal_one_plain_process(plain):
    expected_curve, expected_weights = plain
    actual_curve, actual_weights = on_ranks(2, sharded, "fp32")[0]
    torch.testing.assert_close(torch.tensor(actual_curve), torch.tensor(expected_curve), rtol=1e-4, atol=0)
    assert actual_weights.keys() == expected_weights.keys()
    for name, value in actual_weights.items():
        torch.testing.assert_close(value, expected_weights[name], rtol=1e-3, atol=1e-4)


def test_bf16_follows_fp32_at_degree_one(plain):
    """Mixed precision applies on one rank too: close to fp32, and not equal to it."""
    expected_curve, _ = plain
    actual_curve, actual_weights = on_ranks(1, sharded, "bf16")[0]
    difference = torch.tensor(actual_curve)[:, 0] - torch.tensor(expected_curve)[:, 0]
    assert 1e-6 < difference.abs().max() < 0.1
    assert all(value.dtype == torch.float32 for value in actual_weights.values())
