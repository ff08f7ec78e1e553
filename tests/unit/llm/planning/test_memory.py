"""Estimates against what torch's allocator says of real training steps."""

import gc
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from llm.models.config import ModelConfig
from llm.models.load import build
from llm.models.parameters import parameter_count
from llm.models.presets import model_config
from llm.planning.memory import Step, training_memory
from llm.training import loss_chunks
from llm.training.loss import next_token_targets, summed_cross_entropy
from llm.training.optimizer import adamw
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.step import train_step
from tests.unit.ranks import in_turn

SHAPE = {"d_model": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16, "max_seq_len": 256}
BOTH = SHAPE | {"n_encoder_layers": 3}


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def allocated(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that `work` holds in the end, what it returns included, and at most: beyond what there was before
    it, and by every call of the allocator.
    """
    gc.collect()
    with profile(profile_memory=True) as seen:
        kept = work()
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    events.sort(key=lambda each: each.start_ns())
    held = list(itertools.accumulate(each.nbytes() for each in events))
    del kept
    return held[-1], max(held)


def measured(config: ModelConfig, step: Step) -> int:
    """The most that a second step holds: the first one made the optimizer's state."""
    model = build(config)
    shard(model, data_mesh(torch.device("cpu")), step.precision)
    model.to_empty(device="cpu")
    model.init_weights(seed=0)
    if step.checkpointing:
        for block in model.blocks:
            block.forward = lambda *x, forward=block.forward: checkpoint(forward, *x, use_reentrant=False)
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95))
    inputs = [torch.zeros(step.micro_batch, step.input_len or 1, dtype=torch.int64)]
    inputs = inputs if config.family == "encoder-decoder" else []

    def loss_sum(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        def readout(hidden, weight, bias):
            return summed_cross_entropy(hidden, weight, targets, config.vocab_size, bias)

        return model(*inputs, tokens, readout=readout)

    tokens = torch.randint(config.vocab_size, (step.micro_batch * step.micro_batches, step.seq_len))
    parts = [(part, next_token_targets(part)) for part in tokens.split(step.micro_batch)]

    def take() -> None:
        train_step(model, optimizer, parts, loss_sum, 1e-3, 1.0)

    take()
    state = 3 * 4 * parameter_count(config) // step.ranks  # weights, two moments: there before and after
    return state + allocated(take)[1]


@pytest.mark.parametrize(
    "preset, fields, how",
    [
        ("tiny-100k", SHAPE | {"n_kv_heads": 2, "d_ff": 172}, {}),
        ("tiny-100k", SHAPE | {"d_ff": 172, "tie_embeddings": False}, {"micro_batches": 2}),
        ("tiny-100k", SHAPE | {"d_ff": 172, "qk_norm": True, "sliding_window": 24}, {}),
        ("tiny-100k", SHAPE | {"d_ff": 172, "d_model": 128, "n_layers": 8}, {"micro_batch": 1}),
        ("tiny-100k", SHAPE | {"n_kv_heads": 2, "d_ff": 172}, {"checkpointing": True}),
        (
            "tiny-100k",
            SHAPE | {"d_ff": 172, "position": "alibi"},
            {"micro_batch": 1, "seq_len": 256, "precision": "bf16"},
        ),
        ("mixtral-8x7b", SHAPE | {"d_ff": 96, "n_experts": 4}, {}),
        ("gpt2", SHAPE | {"d_ff": 256}, {}),
        ("bert-base", SHAPE | {"d_ff": 256}, {}),
        ("bert-base", SHAPE | {"d_ff": 256}, {"checkpointing": True, "micro_batches": 2}),
        ("transformer-base", BOTH | {"d_ff": 256}, {"input_len": 96}),
        ("t5-small", BOTH | {"d_ff": 256}, {"input_len": 48}),
        ("t5-v1.1-small", BOTH | {"d_ff": 172}, {"input_len": 96, "micro_batches": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_estimate_is_within_a_tenth_of_a_measured_step(preset, fields, how):
    config = model_config(preset, vocab_size=256, **fields)
    step = Step(**{"micro_batch": 4, "seq_len": 64, "precision": "fp32", "on_gpu": False} | how)
    assert training_memory(config, step).peak == pytest.approx(measured(config, step), rel=0.1)


@pytest.mark.parametrize(
    "preset, fields, input_len",
    [
        ("tiny-100k", SHAPE | {"n_kv_heads": 2, "d_ff": 172}, None),
        ("mixtral-8x7b", SHAPE | {"d_ff": 96, "n_experts": 4}, None),
        ("gpt2", SHAPE | {"d_ff": 256}, None),
        ("bert-base", SHAPE | {"d_ff": 256}, None),
        ("transformer-base", BOTH | {"d_ff": 256}, 96),
        ("t5-small", BOTH | {"d_ff": 256}, 48),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_part_is_within_a_tenth_of_what_is_measured(preset, fields, input_len):
    config = model_config(preset, vocab_size=256, **fields)
    expected = training_memory(config, Step(4, 64, input_len=input_len, precision="fp32", on_gpu=False))
    model = build(config).to_empty(device="cpu")
    model.init_weights(seed=0)
    optimizer = adamw(model, 1e-3, 0.1, (0.9, 0.95))
    inputs = [] if input_len is None else [torch.zeros(4, input_len, dtype=torch.int64)]
    tokens = torch.randint(config.vocab_size, (4, 64))
    head = []

    def keep_head(states, weight, bias):
        head[:] = weight, bias
        return states

    def hidden() -> torch.Tensor:
        return model(*inputs, tokens, readout=keep_head)

    def loss(states: torch.Tensor) -> torch.Tensor:
        weight, bias = head
        return summed_cross_entropy(states, weight, next_token_targets(tokens), config.vocab_size, bias)

    activations, _ = allocated(hidden)
    states = hidden().detach().requires_grad_()
    _, of_the_loss = allocated(lambda: loss(states))
    loss(hidden()).backward()
    gradients = sum(parameter.grad.nbytes for parameter in model.parameters())
    optimizer.step()
    moments = [each for state in optimizer.state.values() for each in state.values() if each.ndim]

    assert expected.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert expected.gradients == gradients
    assert expected.optimizer == sum(each.nbytes for each in moments)
    assert expected.activations == pytest.approx(activations, rel=0.1)
    assert expected.loss == pytest.approx(of_the_loss, rel=0.1)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_it_is_in_bf16_too(micro_batches):
    """Where whole weights and gradients of a block count for something."""
    config = model_config("tiny-100k", vocab_size=256, **SHAPE | {"d_ff": 172, "n_layers": 3})
    step = Step(2, 32, micro_batches=micro_batches, precision="bf16", on_gpu=False)
    assert training_memory(config, step).peak == pytest.approx(measured(config, step), rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_with_many_chunks_of_logits(precision, monkeypatch):
    """A vocabulary so large, and blocks so few, that the loss decides."""
    monkeypatch.setattr(loss_chunks, "_CPU_ROWS", 64)
    monkeypatch.setattr(loss_chunks, "_CPU_ELEMENTS", 0)
    shape = SHAPE | {"d_model": 16, "d_ff": 32, "n_layers": 1, "tie_embeddings": True}
    config = model_config("tiny-100k", vocab_size=20_000, **shape)
    step = Step(8, 64, precision=precision, on_gpu=False)
    assert training_memory(config, step).loss > 0.4 * training_memory(config, step).peak
    assert training_memory(config, step).peak == pytest.approx(measured(config, step), rel=0.1)


def test_two_ranks_halve_the_state_but_accumulate_whole_gradients():
    """Buffers of the network live longer in some runs than in others, which only adds to the peak: the lowest
    of three counts. Whole gradients would be 18 % more.
    """
    config = model_config("tiny-100k", vocab_size=256, **SHAPE | {"d_ff": 344, "d_model": 128})
    steps = [Step(1, 32, micro_batches=n, ranks=2, precision="fp32", on_gpu=False) for n in (1, 2)]
    runs = in_turn([(2, measured, (config, step)) for step in steps for _ in range(3)])
    for number, step in enumerate(steps):
        lowest = min(seen for ranks in runs[3 * number : 3 * number + 3] for seen in ranks)
        assert training_memory(config, step).peak == pytest.approx(lowest, rel=0.15)
