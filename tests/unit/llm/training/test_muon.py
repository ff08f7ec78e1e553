"""Muon against torch's own, against the polynomial of the singular values, and on sharded matrices."""

import pytest
import torch
from torch.distributed.tensor import Shard, distribute_tensor

from llm.models.decoder import Decoder
from llm.models.encoder_decoder import EncoderDecoder
from llm.models.load import build
from llm.models.masked_lm import MaskedLM
from llm.models.presets import model_config
from llm.training.ema import average_weights, take_average
from llm.training.loop import language_model_loss
from llm.training.loss import next_token_targets
from llm.training.muon import MuonWithAdamW, newton_schulz, orthogonalised
from llm.training.optimizer import adamw, with_muon
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights
from llm.training.step import train_step
from tests.unit.llm.training.on_ranks import on_ranks

CONFIG = model_config("tiny-100k", vocab_size=100, d_model=32, d_ff=48)
EXPERTS = CONFIG.model_copy(update={"n_experts": 4, "experts_per_token": 2})


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24), (3, 16, 40), (3, 40, 16)])
def test_newton_schulz_is_its_polynomial_on_the_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    expected = u @ s.diag_embed() @ v
    torch.testing.assert_close(newton_schulz(matrix).double(), expected, rtol=0, atol=1e-5)
    rough = torch.linalg.svdvals(newton_schulz(matrix.bfloat16()).float())
    assert rough.min() > 0.5
    assert rough.max() < 1.3


def test_steps_equal_those_of_torch():
    """Which has bf16 alone, and matrices that are one."""
    torch.manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(48, 20))
    ours, rest = torch.nn.Parameter(theirs.detach().clone()), torch.nn.Parameter(torch.ones(3))
    reference = torch.optim.Muon([theirs], 0.05, 0.1, 0.9, adjust_lr_fn="match_rms_adamw")
    group = {"params": [ours], "lr": 0.05, "weight_decay": 0.1}
    optimizer = MuonWithAdamW([group], {ours: (48,)}, torch.optim.AdamW([rest]), 0.9, torch.bfloat16)
    for _ in range(4):
        theirs.grad = torch.randn(48, 20)
        ours.grad = theirs.grad.clone()
        reference.step()
        optimizer.step()
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=4e-3
        )  # bf16: 0.4 % of steps of 0.05 · 0.2 · √48
    assert (rest == 1).all(), "it has no gradient"


def test_matrices_that_share_a_parameter_are_orthogonalised_by_themselves():
    model = Decoder(CONFIG.model_copy(update={"n_kv_heads": 2}))
    optimizer = with_muon(adamw(model, 1.0, 0.0, (0.9, 0.95)), model, 0.0, torch.float32)
    qkv, before = model.blocks[0].attention.qkv.weight, model.blocks[0].attention.qkv.weight.detach().clone()
    qkv.grad = torch.randn_like(qkv)
    optimizer.step()
    start = 0
    for rows in (32, 16, 16):
        part = slice(start, start := start + rows)
        expected = 0.2 * 32**0.5 * newton_schulz(qkv.grad[part])
        torch.testing.assert_close(before[part] - qkv[part], expected, rtol=1e-4, atol=1e-5)


def test_each_matrix_of_each_expert_is_orthogonalised_by_itself():
    model = Decoder(EXPERTS)
    model.init_weights(seed=3)
    optimizer = with_muon(adamw(model, 1.0, 0.0, (0.9, 0.95)), model, 0.0, torch.float32)
    for name, rows in (("gate_up", 48), ("down", 32)):
        stack = getattr(model.blocks[0].mlp, name).weight
        before, stack.grad = stack.detach().clone(), torch.randn_like(stack)
        stack.grad[1] = 0  # chosen by no token
        optimizer.step()
        for expert, gradient in enumerate(stack.grad.double()):
            for part, matrix in enumerate(gradient.split(rows)):
                place = slice(part * rows, (part + 1) * rows)
                moved = (before - stack)[expert, place].double()
                expected = 0.2 * 48**0.5 * newton_schulz(matrix)
                torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind, preset",
    [(Decoder, "gpt2"), (Decoder, "moe-280m"), (EncoderDecoder, "t5-small"), (MaskedLM, "bert-base")],
)
def test_only_the_matrices_of_blocks_are_muons(kind, preset):
    with torch.device("meta"):
        model = kind(model_config(preset, vocab_size=128, n_layers=1))
    optimizer = with_muon(adamw(model, 1e-2, 0.1, (0.9, 0.95)), model, 0.95, torch.float32)
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon = {names[p] for g in optimizer.param_groups if "momentum" in g for p in g["params"]}
    other = {names[p] for g in optimizer.param_groups if "betas" in g for p in g["params"]}
    assert muon | other == set(names.values())
    assert not muon & other
    assert all(name.split(".")[-2] in {"qkv", "q", "kv", "out", "up", "gate_up", "down"} for name in muon)
    matrices = {name for name in names.values() if "blocks." in name and name.endswith("weight")}
    assert muon == {name for name in matrices if "norm" not in name and "router" not in name}


def batch(step: int):
    tokens = torch.randint(CONFIG.vocab_size, (4, 10), generator=torch.Generator().manual_seed(step))
    return tokens, next_token_targets(tokens)


def trained(model, rank: int, world: int):
    """Whole weights, averaged, after a few steps of Muon, and the losses."""
    optimizer = with_muon(adamw(model, 1e-2, 0.1, (0.9, 0.95)), model, 0.95, torch.float32)
    average_weights(optimizer, 0.5)
    share, losses = 4 // world, []
    for step in range(6):
        mine = tuple(t[rank * share : (rank + 1) * share] for t in batch(step))
        losses.append(train_step(model, optimizer, [mine], language_model_loss(model), 1e-2, 1.0).loss)
    take_average(optimizer)
    return losses, {name: value.numpy() for name, value in gather_weights(model).items()}


def matrices():
    """Three of them, for two ranks, one with an odd number of rows, one of a single row; and stacks of three
    and of one, whose rows two ranks can divide.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 4), (3, 6, 5), (1, 6), (1, 4, 6), (8, 5))
    rows = [(3, 4), (3, 3), (1,), (4,), (8,)]
    return [torch.randn(shape, generator=generator) for shape in shapes], rows


def sharded_process():
    mesh = data_mesh(torch.device("cpu"))
    updates, rows = matrices()
    by_rows = orthogonalised([distribute_tensor(each, mesh, [Shard(0)]) for each in updates], rows)
    by_columns = orthogonalised([distribute_tensor(each, mesh, [Shard(1)]) for each in updates], rows)
    whole = [each.full_tensor().numpy() for each in by_rows + by_columns]
    learned = []
    for config in (CONFIG, EXPERTS):
        model = build(config)
        shard(model, mesh, "fp32")
        model.to_empty(device="cpu")
        model.init_weights(seed=3)
        learned.append(trained(model, mesh.get_rank(), mesh.size()))
    return whole, learned


def test_two_processes_equal_one():
    torch.set_num_threads(1)
    updates, rows = matrices()
    expected = orthogonalised(updates, rows)
    whole, learned = on_ranks(2, sharded_process)[0]
    for one, other in zip(whole, expected * 2, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-4, atol=1e-5)
    for config, (losses, weights) in zip((CONFIG, EXPERTS), learned, strict=True):
        model = Decoder(config)
        model.init_weights(seed=3)
        expected_losses, expected_weights = trained(model, rank=0, world=1)
        assert losses == pytest.approx(expected_losses, rel=1e-4)
        for name, value in weights.items():
            close = torch.from_numpy(value), torch.from_numpy(expected_weights[name])
            torch.testing.assert_close(*close, rtol=1e-3, atol=1e-4, msg=name)
