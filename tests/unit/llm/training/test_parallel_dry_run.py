"""What the ranks of a layout would hold makes one whole model."""

import pytest

from llm.models.parameters import parameter_count
from llm.models.presets import model_config
from llm.training.parallel.dry_run import dry_run
from llm.training.parallel.layout import LayoutError, ParallelLayout

CONFIG = model_config("tiny-100k", 500, d_model=48, n_heads=4, n_kv_heads=2, d_ff=100, tie_embeddings=False)


def test_the_shards_of_all_ranks_are_one_model_in_each_copy():
    """Uneven ones too: 48 columns over 3 · 2 ranks."""
    layout = ParallelLayout(replicate=2, shard=3, tensor=2)
    ranks = [dry_run(CONFIG, layout, rank=rank, seq_len=32) for rank in range(layout.ranks)]
    norms = 4 * CONFIG.n_layers * 2 * CONFIG.d_model  # of blocks: tensor ranks hold the same
    assert sum(each.parameters for each in ranks) == 2 * (4 * parameter_count(CONFIG) + norms)
    assert all(each.optimizer == 2 * each.parameters == 2 * each.gradients for each in ranks)


def test_stages_are_one_model():
    layout = ParallelLayout(shard=2, pipeline=2)
    ranks = [dry_run(CONFIG, layout, rank=rank, seq_len=32) for rank in range(layout.ranks)]
    assert sum(each.parameters for each in ranks) == 4 * parameter_count(CONFIG)
    assert ranks[0].activations == 2 * ranks[2].activations, "the first has two micro-batches under way"


@pytest.mark.parametrize("layout", [{"shard": 8, "expert": 2}, {"shard": 2, "tensor": 2, "expert": 4}])
def test_experts_of_all_ranks_are_one_model(layout):
    """More ranks than experts too: each has an equal part of some."""
    layout, config = (
        ParallelLayout(**layout),
        CONFIG.model_copy(update={"n_experts": 4, "experts_per_token": 2}),
    )
    ranks = [dry_run(config, layout, rank=rank, seq_len=32) for rank in range(layout.ranks)]
    held_by_all = config.n_layers * (2 + config.n_experts) * config.d_model  # norms and routers
    whole = parameter_count(config) + (layout.tensor - 1) * held_by_all
    assert sum(each.parameters for each in ranks) == 4 * whole
    experts = 4 * config.n_layers * config.n_experts * 3 * config.d_model * config.d_ff
    assert all(each.parameters > experts / layout.ranks for each in ranks)


def test_activations_of_a_block_by_hand():
    """bf16, 64 tokens: what RMSNorms, matmuls, attention and SwiGLU need for the way back."""
    one = dry_run(CONFIG, ParallelLayout(), micro_batch=2, seq_len=32)
    divided = dry_run(CONFIG, ParallelLayout(tensor=2), micro_batch=2, seq_len=32)
    d, heads, kv, ff = 48, 48, 24, 100
    norm = 4 * d + 4 * d + 2 * d  # the input in fp32 and normalised, and the output, a matmul's input
    attention = 2 * (heads + 2 * kv + heads + kv + heads)  # qkv for v's sake, q and k rotated, what comes out
    feed_forward = 2 * (2 * ff + ff + ff)  # gate and up, silu(gate), their product
    by_hand = 64 * CONFIG.n_layers * (norm + attention + norm + feed_forward)
    assert by_hand <= one.activations <= 1.05 * by_hand
    assert one.activations / 2 < divided.activations < 0.8 * one.activations


def test_a_layout_that_does_not_fit():
    with pytest.raises(LayoutError, match="n_kv_heads=2"):
        dry_run(CONFIG, ParallelLayout(tensor=4), seq_len=32)
