"""What only a GPU can show of training; without one all of it is skipped."""

import gc
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from llm.models.load import build
from llm.models.presets import model_config
from llm.planning.memory import Step, training_memory
from llm.training import loss as loss_module
from llm.training.activation_checkpointing import checkpoint_activations
from llm.training.deterministic import use_deterministic_algorithms
from llm.training.float8 import use_float8
from llm.training.loop import language_model_loss, train
from llm.training.loss import IGNORE, next_token_targets, with_z_loss
from llm.training.optimizer import adamw
from llm.training.pace import probe_seconds
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.recipe import Recipe
from llm.training.step import train_step
from llm.training.step_split import StepSplit
from tests.unit.llm.training.checkpointed_run import RECIPE, a_run, assert_same, micro_batches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
SHAPE = {"d_model": 128, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "d_ff": 256}
FAMILIES = {
    "decoder": ("tiny-100k", SHAPE),
    "experts": ("tiny-100k", SHAPE | {"n_experts": 4, "experts_per_token": 2}),
    "encoder-decoder": ("t5-v1.1-small", SHAPE | {"n_encoder_layers": 2, "n_kv_heads": 4}),
    "encoder": ("bert-base", SHAPE | {"n_kv_heads": 4}),
}


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before anything multiplies
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def error(actual, expected):
    """‖actual − expected‖ / ‖expected‖, in float64."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_loss_and_gradients_are_those_of_float64(dtype, bound, compiled, monkeypatch):
    monkeypatch.setattr(loss_module, "rows_at_a_time", lambda *_: 128)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 64, generator=generator).to(dtype)
    weight = (torch.randn(1024, 64, generator=generator) / 8).to(dtype)
    targets = torch.randint(1000, (300,), generator=generator)
    targets[5:9] = IGNORE
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    logits = F.linear(exact[0], exact[1][:1000])
    z = 0.01 * (logits.logsumexp(-1) ** 2)[targets != IGNORE].sum()
    expected = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORE) + z
    expected.backward()

    ours = [each.to(GPU).requires_grad_() for each in (hidden, weight)]
    total, z_loss = with_z_loss(*ours, targets.to(GPU), 1000, compiled=compiled, coefficient=0.01)
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=bound / 10)
    assert z_loss.item() == pytest.approx(z.item(), rel=bound)
    for one, other in zip(ours, exact, strict=True):
        assert error(one.grad, other.grad) < bound
    assert (ours[1].grad[1000:] == 0).all()


def losses(family, device, precision, steps=4, kept="none", compiled=False):
    """Of some steps of one model, in two micro-batches each."""
    preset, fields = FAMILIES[family]
    config = model_config(preset, vocab_size=500, max_seq_len=128, **fields)
    model = build(config)
    shard(model, data_mesh(device), precision)
    model.to_empty(device=device)
    model.init_weights(seed=1)
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95))
    for block in model.blocks:
        checkpoint_activations(block, kept)
        if compiled:
            block.compile()
    loss_sum, seen = language_model_loss(model, compiled=compiled), []
    for step in range(steps):
        tokens = torch.randint(500, (4, 128), generator=torch.Generator().manual_seed(step)).to(device)
        targets = next_token_targets(tokens)
        inputs = (tokens.flip(1), tokens, targets) if family == "encoder-decoder" else (tokens, targets)
        parts = list(zip(*(each.split(2) for each in inputs), strict=True))
        seen.append(train_step(model, optimizer, parts, loss_sum, 1e-3, clip_norm=1.0).loss)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_takes_the_steps_of_a_cpu(family):
    expected = losses(family, torch.device("cpu"), "fp32")
    assert losses(family, GPU, "fp32") == pytest.approx(expected, rel=1e-4)
    assert losses(family, GPU, "bf16") == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("family", ["decoder", "experts"])
@pytest.mark.parametrize("kept", ["none", "selective"])
def test_compiled_in_bf16_too(family, kept):
    expected = losses(family, GPU, "bf16")
    assert losses(family, GPU, "bf16", kept=kept, compiled=True) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_resumed_run_equals_one_that_was_left_alone(tmp_path, asynchronous):
    use_deterministic_algorithms()
    recipe = Recipe(**vars(RECIPE) | {"checkpoint_async": asynchronous})

    class Killed(Exception):
        pass

    def on_gpu(folder, kill_at=None):
        def batches(step):
            if step == kill_at:
                raise Killed
            return [tuple(each.to(GPU) for each in part) for part in micro_batches(step)]

        run = a_run(folder, recipe=recipe, micro_batches=batches)
        run.model.to(GPU)
        return run

    try:
        train(whole := on_gpu(tmp_path / "whole"))
        with pytest.raises(Killed):
            train(on_gpu(tmp_path / "cut", kill_at=6))
        train(resumed := on_gpu(tmp_path / "cut"))
        assert_same(resumed, whole)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("how", [{}, {"micro_batches": 2}, {"checkpointing": True}], ids=str)
def test_memory_is_as_estimated(how):
    config = model_config("llama-125m", vocab_size=32000, n_layers=6)
    step = Step(micro_batch=4, seq_len=1024, precision="bf16", on_gpu=True, **how)
    torch.cuda.empty_cache()
    gc.collect()
    before = torch.cuda.memory_allocated()
    model = build(config)
    shard(model, data_mesh(GPU), "bf16")
    model.to_empty(device=GPU)
    model.init_weights(seed=0)
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95))
    if step.checkpointing:
        for block in model.blocks:
            checkpoint_activations(block, "full")
    tokens = torch.randint(32000, (4 * step.micro_batches, 1024), device=GPU)
    parts = [(part, next_token_targets(part)) for part in tokens.split(4)]
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        train_step(model, optimizer, parts, language_model_loss(model), 1e-3, clip_norm=1.0)
    held = torch.cuda.max_memory_allocated() - before
    assert training_memory(config, step).peak == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_float8_is_near(compiled):
    pytest.importorskip("torchao")
    found = []
    for float8 in (False, True):
        model = build(model_config("tiny-100k", vocab_size=500, **SHAPE))
        if float8:
            use_float8(model, GPU)
        shard(model, data_mesh(GPU), "bf16")
        model.to_empty(device=GPU)
        model.init_weights(seed=1)
        if compiled:
            for block in model.blocks:
                block.compile()
        optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95))
        tokens = torch.randint(500, (4, 128), generator=torch.Generator().manual_seed(0)).to(GPU)
        batch = [(tokens, next_token_targets(tokens))]
        found.append(
            [
                train_step(model, optimizer, batch, language_model_loss(model), 1e-3, 1.0).loss
                for _ in range(5)
            ]
        )
    exact, rounded = found
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded[-1] < rounded[0]


def test_the_parts_of_a_step_are_timed_and_the_probe_is_brief():
    model = build(model_config("tiny-100k", vocab_size=500, **SHAPE)).to_empty(device=GPU)
    model.init_weights(seed=1)
    optimizer, split = adamw(model, 1e-3, 0.1, (0.9, 0.95)), StepSplit(GPU)
    split.optimizer(optimizer)
    tokens = torch.randint(500, (4, 128), device=GPU)
    loss_sum = split.forward(language_model_loss(model))
    train_step(model, optimizer, [(tokens, next_token_targets(tokens))], loss_sum, 1e-3, clip_norm=1.0)
    torch.cuda.synchronize()
    seconds = split.take()
    assert seconds.keys() == {"forward_seconds", "backward_seconds", "optimizer_seconds"}
    assert all(value > 0 for value in seconds.values())
    assert 1e-4 < probe_seconds(GPU) < 1
