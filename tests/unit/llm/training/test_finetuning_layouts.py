"""A model that begins with whole weights, with adapters or without, learns the same however it is divided."""

import pytest
import torch

from llm.models.load import build
from llm.models.lora import add_adapters, initial_adapters
from llm.models.lora_config import LoraConfig
from llm.models.presets import model_config
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets
from llm.training.optimizer import adamw
from llm.training.parallel.layout import ParallelLayout
from llm.training.parallel.parallelize import parallelize
from llm.training.parallel.ranks import arrange
from llm.training.parallel.weights import gather_weights, scatter_weights
from llm.training.step import train_step
from tests.unit.llm.training.on_ranks import on_ranks

CONFIG = model_config("tiny-100k", 100, d_model=32, d_ff=48, n_experts=4, experts_per_token=2)
LORA = LoraConfig(rank=4, targets="attention")
CASES = {
    "all weights, experts over tensor": (ParallelLayout(tensor=2, expert=2), None),
    "adapters, copies": (ParallelLayout(replicate=2), LORA),
    "adapters, experts over shards": (ParallelLayout(shard=2, expert=2), LORA),
    "adapters, experts over context": (ParallelLayout(context=2, expert=2), LORA),
}


def learned(layout, lora):
    """(loss, gradient norm) of three steps, and the weights after them."""
    ranks, rows = arrange(layout, torch.device("cpu")), 4 // layout.data
    whole = build(CONFIG).to_empty(device="cpu")
    whole.init_weights(seed=0)
    model = build(CONFIG)
    if lora is not None:
        add_adapters(model, lora)
    parallelize(model, ranks, "fp32")
    model.to_empty(device="cpu")
    scatter_weights(model, whole.state_dict() | initial_adapters(model, seed=1))
    optimizer = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95))
    tokens = torch.randint(100, (4, 16), generator=torch.Generator().manual_seed(0))
    first = ranks.place.data * rows
    mine = tuple(each[first : first + rows] for each in (tokens, next_token_targets(tokens)))
    loss_sum = language_model_loss(model, ranks=ranks)
    results = [train_step(model, optimizer, [mine], loss_sum, 1e-2, 1.0, layout.copies) for _ in range(3)]
    return [(each.loss, each.grad_norm) for each in results], gather_weights(model, ranks)


def all_cases():
    return {name: learned(*case) for name, case in CASES.items()}


def alone():
    return {lora: learned(ParallelLayout(), lora) for lora in (None, LORA)}


@pytest.fixture(scope="module")
def on_two_ranks():
    return on_ranks(2, all_cases)[0]


@pytest.fixture(scope="module")
def on_one():
    return on_ranks(1, alone)[0]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_what_one_does(name, on_two_ranks, on_one):
    (curve, weights), (expected_curve, expected) = on_two_ranks[name], on_one[CASES[name][1]]
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected_curve), rtol=1e-4, atol=0)
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)
