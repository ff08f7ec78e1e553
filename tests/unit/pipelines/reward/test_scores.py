"""Measures of a reward model on several workers are those on one, whatever is left over for the last pass."""

import pytest
import torch

from llm.models.heads import DecoderWithScalar
from llm.models.load import build
from llm.models.presets import model_config
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import scatter_weights
from pipelines.reward.rankings import Ranking
from pipelines.reward.scores import measure
from tests.unit.ranks import on_ranks

CONFIG = model_config("tiny-100k", vocab_size=100, d_model=32, d_ff=48)


def rankings(count: int) -> list[Ranking]:
    """Of two to four responses each, of 3 to 20 tokens."""
    generator = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    return [
        Ranking(
            [[number(8, 99) for _ in range(number(3, 20))] for _ in range(responses)],
            [number(1, 3) for _ in range(responses)],
        )
        for responses in (number(2, 4) for _ in range(count))
    ]


def measured() -> list[dict[str, float]]:
    """Of 8, 7 and 9 rankings, in chunks of 4 a worker."""
    whole = DecoderWithScalar(CONFIG)
    whole.init_weights(seed=0)
    model = build(CONFIG, "scalar")
    assert isinstance(model, DecoderWithScalar)
    shard(model, data_mesh(torch.device("cpu")), "fp32")
    model.to_empty(device="cpu")
    scatter_weights(model, whole.state_dict())
    return [measure(model, rankings(count), 4, torch.device("cpu"), "heldout") for count in (8, 7, 9)]


def test_two_workers_measure_what_one_does():
    """Of 7 rankings one worker has 4 and the other 3, which would be unequally many forward passes; of 9 the
    last pass has one ranking for both.
    """
    (alone,) = on_ranks(1, measured)
    first, second = on_ranks(2, measured)
    assert first == second
    for one, two in zip(alone, first, strict=True):
        assert two == pytest.approx(one, rel=1e-5)
        assert one["heldout_pairs"] > 7
