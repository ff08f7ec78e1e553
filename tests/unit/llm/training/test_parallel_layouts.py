"""However a model is divided among ranks, it learns what one process learns, and its checkpoints are read
under any other layout.
"""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed import distributed_c10d
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from llm.models.load import build
from llm.models.presets import model_config
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.checkpoint import load_checkpoint, newest_checkpoint
from llm.training.checkpoint_saver import CheckpointSaver
from llm.training.checkpoint_writing import CheckpointPlace
from llm.training.expert_load import expert_load
from llm.training.loop import language_model_loss
from llm.training.loss import IGNORE, next_token_targets
from llm.training.optimizer import adamw, with_muon
from llm.training.parallel.layout import ParallelLayout
from llm.training.parallel.parallelize import parallelize
from llm.training.parallel.pipeline import Pipeline, Stage, stage_of
from llm.training.parallel.ranks import arrange
from llm.training.parallel.weights import gather_weights
from llm.training.precision import Precision
from llm.training.step import train_step
from tests.unit.llm.training.on_ranks import on_ranks

LLAMA = model_config("tiny-100k", 100, d_model=32, d_ff=48, qk_norm=True, sliding_window=9)
GPT = model_config(
    "gpt2",
    100,
    max_seq_len=16,
    d_model=32,
    d_ff=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    tie_embeddings=False,
)
UNTIED = LLAMA.model_copy(update={"tie_embeddings": False})
EXPERTS = UNTIED.model_copy(
    update={
        "n_experts": 4,
        "experts_per_token": 2,
        "balance_coefficient": 0.5,
        "router_z_coefficient": 0.1,
    }
)
T5 = model_config("t5-tiny", 100, d_ff=48, n_heads=4)
T5_V11 = model_config(
    "t5-v1.1-small",
    100,
    d_model=32,
    n_layers=2,
    n_encoder_layers=2,
    n_heads=4,
    n_kv_heads=4,
    head_dim=8,
    d_ff=48,
)
TRANSFORMER = model_config(
    "transformer-base", 100, d_model=32, n_layers=2, n_encoder_layers=2, n_heads=4, n_kv_heads=4, d_ff=48
)
ALIBI = LLAMA.model_copy(update={"position": "alibi"})
BERT = model_config("bert-tiny", 100, d_model=32, d_ff=48, max_seq_len=16)
DEEP = LLAMA.model_copy(update={"n_layers": 4})
STEPS, SEQUENCES, LENGTH, OPENING = 3, 8, 16, 5


@dataclass(frozen=True)
class Case:
    layout: ParallelLayout
    config: object
    opening_id: int | None = None
    z_loss: float = 0.0
    muon: bool = False
    checkpointing: str = "none"
    compiled: bool = False
    precision: Precision = "fp32"


CASES = {
    "copies of a sharded model": Case(ParallelLayout(replicate=2, shard=2), LLAMA),
    "copies of a sharded encoder-decoder": Case(ParallelLayout(replicate=2, shard=2), T5),
    "copies of a sharded encoder": Case(ParallelLayout(replicate=2, shard=2), BERT),
    "tensor and shard": Case(ParallelLayout(shard=2, tensor=2), LLAMA, OPENING),
    "tensor and shard, compiled": Case(ParallelLayout(shard=2, tensor=2), LLAMA, compiled=True),
    "tensor and copies, with biases": Case(ParallelLayout(replicate=2, tensor=2), GPT),
    "tensor and shard, a bias by distance": Case(ParallelLayout(shard=2, tensor=2), ALIBI),
    "tensor and shard, encoder-decoder": Case(ParallelLayout(shard=2, tensor=2), T5, OPENING),
    "tensor and copies, encoder-decoder": Case(ParallelLayout(replicate=2, tensor=2), T5_V11),
    "four tensor ranks, encoder-decoder": Case(ParallelLayout(tensor=4), TRANSFORMER),
    "tensor and shard, encoder": Case(ParallelLayout(shard=2, tensor=2), BERT),
    "context and shard, documents apart": Case(ParallelLayout(shard=2, context=2), LLAMA, OPENING),
    "context and copies": Case(ParallelLayout(replicate=2, context=2), LLAMA, OPENING),
    "context and stages": Case(ParallelLayout(context=2, pipeline=2), UNTIED, OPENING),
    "copies of stages": Case(ParallelLayout(replicate=2, pipeline=2), UNTIED, z_loss=0.1),
    "context and tensor": Case(ParallelLayout(context=2, tensor=2), GPT),
    "context and shard, a bias by distance": Case(ParallelLayout(shard=2, context=2), ALIBI),
    "context and shard, encoder-decoder": Case(ParallelLayout(shard=2, context=2), T5, OPENING),
    "context and shard, encoder-decoder with a window": Case(
        ParallelLayout(shard=2, context=2), T5.model_copy(update={"sliding_window": 5}), OPENING
    ),
    "context and tensor, encoder-decoder": Case(
        ParallelLayout(context=2, tensor=2), T5, OPENING, z_loss=0.1, checkpointing="selective"
    ),
    "stages and tensor, a bias by distance": Case(
        ParallelLayout(tensor=2, pipeline=2), ALIBI.model_copy(update={"tie_embeddings": False})
    ),
    "context and tensor, encoder": Case(ParallelLayout(context=2, tensor=2), BERT),
    "stages and shard, documents apart": Case(ParallelLayout(shard=2, pipeline=2), UNTIED, OPENING),
    "stages and tensor": Case(ParallelLayout(tensor=2, pipeline=2), UNTIED),
    "stages with one table": Case(ParallelLayout(shard=2, pipeline=2), LLAMA, z_loss=0.1),
    "four stages with one table": Case(ParallelLayout(pipeline=4), DEEP),
    "stages and shard, encoder": Case(ParallelLayout(shard=2, pipeline=2), BERT, z_loss=0.1),
    "stages and tensor, encoder": Case(ParallelLayout(tensor=2, pipeline=2), BERT),
    "stages of experts": Case(ParallelLayout(shard=2, pipeline=2, expert=2), EXPERTS),
    "experts and shard": Case(ParallelLayout(shard=4, expert=2), EXPERTS, OPENING),
    "experts and shard, moved by Muon": Case(ParallelLayout(shard=4, expert=2), EXPERTS, muon=True),
    "experts in copies, moved by Muon": Case(ParallelLayout(replicate=2, shard=2), EXPERTS, muon=True),
    "experts alone, some computed again": Case(
        ParallelLayout(shard=4, expert=4), EXPERTS, checkpointing="selective"
    ),
    "experts in copies": Case(ParallelLayout(replicate=2, shard=2, expert=2), EXPERTS),
    "experts over tensor, context": Case(ParallelLayout(context=2, tensor=2, expert=2), EXPERTS),
    "experts whole, tensor": Case(ParallelLayout(shard=2, tensor=2), EXPERTS),
}


IN_BF16 = {
    "bf16: tensor and shard": Case(ParallelLayout(shard=2, tensor=2), LLAMA, precision="bf16"),
    "bf16: context and stages": Case(ParallelLayout(context=2, pipeline=2), UNTIED, precision="bf16"),
    "bf16: context and tensor, encoder-decoder": Case(
        ParallelLayout(context=2, tensor=2), T5, precision="bf16"
    ),
    "bf16: experts and copies": Case(
        ParallelLayout(replicate=2, shard=2, expert=2), EXPERTS, precision="bf16"
    ),
}


def batch(step: int, config):
    """Rows of which some have few targets: a mean of means over ranks would show. An encoder reads the text
    backwards.
    """
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(100, (SEQUENCES, LENGTH), generator=generator)
    learned = torch.rand(tokens.shape, generator=generator) < torch.linspace(0.1, 1, SEQUENCES).unsqueeze(1)
    read = [tokens.flip(1)] if config.family == "encoder-decoder" else []
    return *read, tokens, next_token_targets(tokens, learned)


def steps(model, optimizer, case: Case, ranks, numbers):
    """(loss, z-loss, gradient norm, tokens, load of experts) of each step, in as many parts as needed. Ranks
    have rows that only fill up their shares, too, where a load would show it.
    """
    layout, share = case.layout, SEQUENCES // case.layout.data
    staged = isinstance(model, Stage)
    pipeline = Pipeline(model, ranks, torch.device("cpu"), case.opening_id, case.z_loss) if staged else None
    backward = pipeline.backward if pipeline else None
    seen = []
    for step in numbers:
        first = ranks.place.data * share if ranks else 0
        mine = [each[first : first + share] for each in batch(step, case.config)]
        size = share // max(2, layout.pipeline)
        if ranks and model.config.n_experts:
            *given, targets = mine
            filler = (0, 0, 0, size)
            mine = [*(F.pad(each, filler, value=3) for each in given), F.pad(targets, filler, value=IGNORE)]
        parts = list(zip(*(each.split(size) for each in mine), strict=True))
        loss_sum = language_model_loss(model, case.opening_id, ranks, case.z_loss)
        result = train_step(model, optimizer, parts, loss_sum, 1e-2, 0.5, layout.copies, backward)
        load = expert_load(model).values() if model.config.n_experts else ()
        seen.append((result.loss, result.z_loss, result.grad_norm, result.tokens, *load))
    return seen


def divided(case: Case):
    ranks = arrange(case.layout, torch.device("cpu"))
    with torch.device("meta"):
        staged = case.layout.pipeline > 1
        model = stage_of(case.config, ranks) if staged else build(case.config)
    parallelize(model, ranks, case.precision)
    model.to_empty(device="cpu")
    for block in model.blocks:
        checkpoint_activations(block, case.checkpointing)
        if case.compiled:
            block.compile(backend="eager")
    return model, ranks


def plainly(case: Case):
    model = build(case.config).to_empty(device="cpu")
    model.init_weights(seed=3)
    with torch.no_grad():
        logits = model(*batch(0, case.config)[:-1])
    alone = replace(case, layout=ParallelLayout())
    curve = steps(model, optimizer_of(model, case), alone, None, range(STEPS))
    return curve, logits, model.state_dict()


def optimizer_of(model, case: Case):
    """With an epsilon above rounding: gradients that are 0 but for it (of a key's bias) move nothing."""
    optimizer = adamw(model, 1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-5)
    return with_muon(optimizer, model, 0.95, torch.float32) if case.muon else optimizer


def dividedly(case: Case):
    model, ranks = divided(case)
    model.init_weights(seed=3)
    with torch.no_grad():
        logits = model(
            *batch(0, case.config)[:-1], readout=F.linear
        )  # An evaluation sees whole rows, and all stages.
    curve = steps(model, optimizer_of(model, case), case, ranks, range(STEPS))
    return curve, logits, gather_weights(model, ranks)


def all_cases(folder):
    found = {}
    for name, case in (CASES | IN_BF16).items():
        found[name] = dividedly(case)
        if name in RELOADED:
            save_then_go_on(folder / name, case)
            found[f"{name}, reloaded"] = reloaded(folder / name, RELOADED[name])
        leave_groups()
    return found


def leave_groups():
    """All but the one of all ranks: each has threads that look for messages."""
    for group in set(distributed_c10d._world.pg_map) - {dist.group.WORLD}:
        dist.destroy_process_group(group)
    _clear_sharding_prop_cache()  # which knows the groups that were


def save_then_go_on(folder, case):
    """Two steps under one layout."""
    model, ranks = divided(case)
    model.init_weights(seed=3)
    optimizer = optimizer_of(model, case)
    steps(model, optimizer, case, ranks, range(2))
    with CheckpointSaver(CheckpointPlace(folder, keep=1)) as saver:
        saver.save(2, model, optimizer, {}, {})
        steps(model, optimizer, case, ranks, range(2, STEPS))  # which the checkpoint knows nothing of


def reloaded(folder, case):
    """The last under another."""
    model, ranks = divided(case)
    optimizer = optimizer_of(model, case)
    load_checkpoint(newest_checkpoint(folder), model, optimizer)
    curve = steps(model, optimizer, case, ranks, range(2, STEPS))
    return curve, None, gather_weights(model, ranks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def on_four_ranks(folder):
    return on_ranks(4, all_cases, folder)


RELOADED = {
    "tensor and shard": Case(ParallelLayout(shard=4), LLAMA, OPENING),
    "tensor and shard, encoder-decoder": Case(ParallelLayout(shard=2, context=2), T5, OPENING),
    "experts and shard": Case(ParallelLayout(shard=2, tensor=2, expert=4), EXPERTS, OPENING),
    "stages with one table": Case(ParallelLayout(shard=4), LLAMA, z_loss=0.1),
    "stages of experts": Case(ParallelLayout(shard=2, pipeline=2, expert=2), EXPERTS),
}
"""Under which layout a checkpoint of another is read."""


@pytest.mark.parametrize("name", CASES)
def test_four_ranks_learn_what_one_process_learns(name, on_four_ranks):
    expected_curve, expected_logits, expected_weights = plainly(CASES[name])
    curve, logits, weights = on_four_ranks[0][name]
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected_curve), rtol=1e-4, atol=0)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert_equal_weights(weights, expected_weights)
    assert [rank[name][0] for rank in on_four_ranks] == [curve] * 4, "the ranks disagree"


@pytest.mark.parametrize("name", IN_BF16)
def test_in_bf16_four_ranks_follow_one_process_in_fp32(name, on_four_ranks):
    (expected_curve, _, _), (curve, _, weights) = plainly(IN_BF16[name]), on_four_ranks[0][name]
    expected, actual = (torch.tensor(each) for each in (expected_curve, curve))
    apart = ((actual - expected) / expected).abs()
    losses, norms = apart[:, 0], apart[:, 2]
    assert 1e-6 < losses.max() < 1e-3
    assert norms[0] < 5e-3, "before weights have gone apart"
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert [rank[name][0] for rank in on_four_ranks] == [curve] * 4, "the ranks disagree"


@pytest.mark.parametrize("name", RELOADED)
def test_a_checkpoint_is_continued_under_any_layout(name, on_four_ranks, folder):
    case = CASES[name]
    expected_curve, _, expected_weights = plainly(case)
    curve, _, weights = on_four_ranks[0][f"{name}, reloaded"]
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected_curve[2:]), rtol=1e-4, atol=0)
    assert_equal_weights(weights, expected_weights)

    model = build(case.config).to_empty(device="cpu")
    optimizer = optimizer_of(model, case)
    load_checkpoint(newest_checkpoint(folder / name), model, optimizer)
    alone = replace(case, layout=ParallelLayout())
    curve = steps(model, optimizer, alone, None, range(2, STEPS))
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected_curve[2:]), rtol=1e-4, atol=0)
    assert_equal_weights(model.state_dict(), expected_weights)


def test_a_resumed_run_is_the_uninterrupted_one(on_four_ranks):
    name = "stages of experts"
    assert RELOADED[name].layout == CASES[name].layout
    uninterrupted, resumed = on_four_ranks[0][name], on_four_ranks[0][f"{name}, reloaded"]
    assert resumed[0] == uninterrupted[0][2:]
    assert all(torch.equal(value, uninterrupted[2][key]) for key, value in resumed[2].items())


def assert_equal_weights(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
