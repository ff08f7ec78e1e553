"""What the ranks of a layout would hold makes one whole model, and is what the planner estimates."""

import gc

import pytest
import torch
from torch.profiler import profile

from llm.models.attention import Scoring, causal
from llm.models.layers import Block
from llm.models.parameters import parameter_count
from llm.models.positions.rope import rotation
from llm.models.presets import model_config
from llm.planning.memory import Step, training_memory
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.parallel import dry_run as module
from llm.training.parallel.block_activations import block_activations
from llm.training.parallel.dry_run import as_rank, dry_run
from llm.training.parallel.layout import LayoutError, ParallelLayout
from llm.training.parallel.ranks import arrange

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
    norm = 2 * d + 4 + 2 * d  # the input, the inverse root, and the output, a matmul's input
    attention = 2 * (heads + 2 * kv + heads + kv + heads)  # qkv for v's sake, q and k rotated, what comes out
    feed_forward = 2 * (2 * ff + ff + ff)  # gate and up, silu(gate), their product
    by_hand = 64 * (CONFIG.n_layers * (norm + attention + norm + feed_forward) + 2 * d + 2 * d)
    assert by_hand <= one.activations <= 1.05 * by_hand
    assert one.activations / 2 < divided.activations < 0.8 * one.activations


def test_a_layout_that_does_not_fit():
    with pytest.raises(LayoutError, match="n_kv_heads=2"):
        dry_run(CONFIG, ParallelLayout(tensor=4), seq_len=32)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize(
    "preset", ["llama-15m", "gpt2", "moe-280m", "t5-small", "t5-v1.1-small", "transformer-base", "bert-base"]
)
def test_it_agrees_with_the_planner_where_ranks_only_shard(preset, checkpointing):
    """Who counts a closed form, of experts' copies a little more than is kept."""
    config = model_config(preset, n_layers=2)
    layout, step = ParallelLayout(shard=4), Step(2, 512, ranks=4, checkpointing=checkpointing == "full")
    seen = dry_run(config, layout, micro_batch=2, seq_len=512, activation_checkpointing=checkpointing)
    expected = training_memory(config, step)
    assert seen.activations == pytest.approx(expected.activations, rel=0.08 if config.n_experts else 0.005)
    assert seen.loss == expected.loss
    found = (seen.parameters, seen.gradients, seen.optimizer)
    assert found == pytest.approx((expected.weights, expected.gradients, expected.optimizer), rel=1e-3)


@pytest.mark.parametrize(
    ("preset", "checkpointing"),
    [("gpt2", "none"), ("gpt2", "selective"), ("gpt2", "full"), ("llama-15m", "selective")],
)
def test_what_a_block_keeps_is_what_one_was_seen_to_keep(preset, checkpointing):
    """By torch's allocator, between the passes on a CPU."""
    config = model_config(preset, 500, d_model=48, n_heads=4, n_kv_heads=4, d_ff=100, max_seq_len=32)
    with as_rank(0, 1):
        ranks = arrange(ParallelLayout(), torch.device("cpu"))
        counted = block_activations(config, ranks, 2, 32, torch.float32).kept(checkpointing)
    block, x = Block(config, layer=0), torch.randn(2, 32, 48, requires_grad=True)
    checkpoint_activations(block, checkpointing)
    turned = rotation(torch.arange(32).unsqueeze(0), config) if config.position == "rope" else None
    attend = causal(Scoring(0.3, 32, x.device))
    gc.collect()  # lest something of another test is freed while we look
    with profile(profile_memory=True) as seen:
        y = block(x, turned, attend)
    held = sum(each.nbytes() for each in seen.profiler.kineto_results.events() if each.name() == "[memory]")
    assert y.shape == x.shape  # the next block's input, as large as this one's
    assert counted == pytest.approx(held, rel=0.01)


@pytest.mark.parametrize("preset", ["t5-small", "bert-base"])
def test_shards_of_other_families_are_one_model_too(preset):
    config = model_config(preset, 500, n_layers=2)
    ranks = [dry_run(config, ParallelLayout(shard=3), rank=rank, seq_len=32) for rank in range(3)]
    assert sum(each.parameters for each in ranks) == 4 * parameter_count(config)
    divided = [
        dry_run(config, ParallelLayout(context=2, tensor=2), rank=rank, seq_len=32) for rank in range(4)
    ]
    held = sum(each.parameters for each in divided) / (4 * parameter_count(config))
    assert 1 < held < 1.01, "norms and biases of blocks are on both tensor ranks"
    assert divided[0].activations < dry_run(config, ParallelLayout(context=2), seq_len=32).activations


def test_a_stage_recomputes_one_block_however_many_it_has_under_way():
    layout = ParallelLayout(pipeline=2)
    none, full = (
        dry_run(CONFIG, layout, seq_len=32, activation_checkpointing=kept) for kept in ("none", "full")
    )
    block = none.activations - full.activations  # in two micro-batches of one block each
    assert full.recomputed == block // 2
    assert none.recomputed == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["t5-11b", "--pipeline", "8"], "dry_run: pipeline=8 is not for an encoder-decoder: use tensor"),
        (["bert-large", "--tensor", "5"], "dry_run: tensor=5 does not divide n_kv_heads=16"),
        (["llama-15m", "--shard", "0"], "dry_run: shard=0 must be at least 1"),
        (["llama-15m", "--shard", "4", "--rank", "4"], "dry_run: rank 4: the layout has ranks 0 to 3"),
        (["llama3-8b", "--seq-len", "9000"], "dry_run: seq_len 9000: the model has a context of 8192"),
        (["llama-15m", "--micro-batch", "-1"], "dry_run: micro_batch -1: at least 1 is needed"),
    ],
)
def test_mistakes_are_one_line(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dry_run", *arguments])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(words)
    assert said.count("\n") == 1
