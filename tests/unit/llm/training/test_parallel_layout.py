"""Which rank does what, and what is said of a layout that cannot be."""

from itertools import product

import pytest

from llm.models.presets import model_config
from llm.training.parallel.layout import LayoutError, ParallelLayout


def test_every_rank_has_a_place_of_its_own_with_tensor_ranks_side_by_side():
    layout = ParallelLayout(replicate=2, shard=3, context=2, tensor=4, pipeline=2)
    places = [layout.place(rank) for rank in range(layout.ranks)]
    expected = product(range(2), range(2), range(3), range(2), range(4))
    assert [(p.pipeline, p.replicate, p.shard, p.context, p.tensor) for p in places] == list(expected)
    shares = [p.data for p in places]
    assert all(shares.count(share) == layout.copies for share in range(layout.data))


TINY = {"d_model": 64, "n_heads": 8, "n_kv_heads": 4, "d_ff": 96, "n_layers": 6, "tie_embeddings": False}

EXPERTS = {"n_experts": 4, "experts_per_token": 2}


@pytest.mark.parametrize(
    "layout, changes, seq_len, message",
    [
        ({"tensor": 8}, {}, 64, "tensor=8 does not divide n_kv_heads=4: choose one of 1, 2, 4"),
        ({"tensor": 4}, {"d_ff": 90}, 64, "tensor=4 does not divide d_ff=90: choose one of 1, 2, 3, 5, 6"),
        ({"tensor": 4}, {}, 66, r"seq_len=66 is not divisible by tensor=4 .*: make it 64 or 68"),
        (
            {"tensor": 2},
            EXPERTS | {"norm_placement": "post"},
            64,
            "tensor=2: experts with norm_placement=post .* use shard",
        ),
        ({"pipeline": 2}, {"position": "relative"}, 64, "pipeline=2: position=relative .* use shard"),
        ({"context": 4}, {}, 68, r"seq_len=68 is not divisible by 2 · context=8: .* make it 64 or 72"),
        ({"context": 4}, {}, 4, "make it 8$"),
        ({"shard": 2, "expert": 2}, {}, 64, "expert=2: this model has no experts"),
        (
            {"shard": 3, "expert": 3},
            EXPERTS,
            64,
            "expert=3 does not divide n_experts=4: choose one of 1, 2, 4",
        ),
        ({"shard": 10, "expert": 2}, EXPERTS, 64, "expert=2 leaves 5 of 10 ranks to .* d_model=64"),
        ({"pipeline": 4}, {}, 64, "pipeline=4 does not divide n_layers=6: choose one of 1, 2, 3, 6"),
    ],
)
def test_models_that_do_not_fit(layout, changes, seq_len, message):
    config = model_config("tiny-100k", 100, **(TINY | changes))
    with pytest.raises(LayoutError, match=message):
        ParallelLayout(**layout).check_model(config, seq_len)


def test_an_encoder_decoder_is_not_divided_into_stages():
    with pytest.raises(LayoutError, match="pipeline=2 is not for an encoder-decoder: use tensor, context or"):
        ParallelLayout(pipeline=2).check_model(model_config("t5-small"), 512)
    ParallelLayout(tensor=2, context=2).check_model(model_config("t5-small"), 512)
    ParallelLayout(tensor=2, pipeline=2).check_model(model_config("bert-base"), 512)


def test_numbers_of_ranks():
    with pytest.raises(LayoutError, match=r"shard=3 .* tensor=2 .* = 6 ranks, but there are 8"):
        ParallelLayout(shard=3, tensor=2).check_ranks(8)
    with pytest.raises(LayoutError, match="= 4 does not divide 6 workers: take a multiple of 4"):
        ParallelLayout.filling(6, tensor=2, context=2)
    with pytest.raises(LayoutError, match="tensor=0 must be at least 1"):
        ParallelLayout(tensor=0)
    with pytest.raises(LayoutError, match=r"expert=8 does not divide .* = 6 ranks .* one of 1, 2, 3, 6"):
        ParallelLayout.filling(12, replicate=2, expert=8)
    assert ParallelLayout.filling(12, tensor=2, expert=4).ranks == 12, "experts take no ranks of their own"
    assert ParallelLayout.filling(24, replicate=2, tensor=4) == ParallelLayout(replicate=2, shard=3, tensor=4)


@pytest.mark.parametrize(
    "preset, layout",
    [
        ("gpt3-175b", ParallelLayout(replicate=2, shard=64, tensor=8)),
        ("llama3-405b", ParallelLayout(shard=64, tensor=8, context=2)),
        ("mixtral-8x7b", ParallelLayout(replicate=4, shard=256, expert=8)),
    ],
)
def test_the_largest_models_fit_a_thousand_ranks(preset, layout):
    assert layout.ranks == 1024
    config = model_config(preset)
    layout.check_model(config, config.max_seq_len)
