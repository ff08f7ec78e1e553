"""bf16 attention on a CPU, whose backward pass is taken in fp32 where rows are short."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llm.models.attention import Scoring, bidirectional, causal, masked
from llm.models.cpu_attention import backward_is_slow
from llm.training.activation_checkpointing import checkpoint_activations

BATCH, SEQ, HEADS, KV_HEADS, HEAD_DIM = 2, 96, 4, 2, 32
SCORING = Scoring(scale=0.2, seq_len=SEQ, device=torch.device("cpu"))
DOCUMENTS = torch.block_diag(*(torch.ones(32, 32) for _ in range(3))).tril().bool()[None, None]
VISIBLE = {
    "causal": (causal, torch.ones(SEQ, SEQ).tril().bool()),
    "bidirectional": (bidirectional, torch.ones(SEQ, SEQ).bool()),
    "documents": (masked(DOCUMENTS), DOCUMENTS),
}


@pytest.fixture
def heads() -> list[Tensor]:
    """q, k, v and the gradient of what comes out."""
    generator = torch.Generator().manual_seed(0)
    n_heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    shapes = [(BATCH, SEQ, each, HEAD_DIM) for each in n_heads]
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]


def gradients(attend: Callable[..., Tensor], heads: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    q, k, v = (each.detach().clone().requires_grad_() for each in heads[:3])
    out = attend(q, k, v)
    out.backward(heads[3].to(out.dtype))
    return out.detach(), [each.grad for each in (q, k, v) if each.grad is not None]


def exact(visible: Tensor) -> Callable[..., Tensor]:
    """By the definition."""

    def attend(*heads: Tensor) -> Tensor:
        q, k, v = (each.repeat_interleave(HEADS // each.shape[2], 2).transpose(1, 2) for each in heads)
        scores = (SCORING.scale * q @ k.transpose(2, 3)).masked_fill(~visible, -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2)

    return attend


def torchs(visible: Tensor) -> Callable[..., Tensor]:
    """By torch's kernels for bf16."""

    def attend(*heads: Tensor) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in heads)
        options = {"scale": SCORING.scale, "enable_gqa": True}
        return F.scaled_dot_product_attention(q, k, v, visible, **options).transpose(1, 2)

    return attend


def distance(some: Tensor, others: Tensor) -> float:
    return float((some.double() - others).norm() / others.norm())


@pytest.mark.parametrize("mask", VISIBLE)
def test_gradients_are_nearer_to_the_exact_ones_than_torchs(mask: str, heads: list[Tensor]) -> None:
    pattern, visible = VISIBLE[mask]
    assert backward_is_slow(heads[0].transpose(1, 2))
    attend = pattern(SCORING)
    out, found = gradients(lambda *heads: attend(0, *heads), heads)
    truth_out, truth = gradients(exact(visible), [each.double() for each in heads])
    _, theirs = gradients(torchs(visible), heads)
    assert distance(out, truth_out) < 4e-3
    for ours, torchs_own, exactly in zip(found, theirs, truth, strict=True):
        assert ours.dtype == torch.bfloat16
        assert distance(ours, exactly) < 3e-3
        assert distance(ours, exactly) < distance(torchs_own, exactly)


class Block(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal(SCORING)(0, q, k, v)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kept", ["selective", "full"])
def test_nothing_changes_by_compiling_and_computing_again(
    compiled: bool, kept: str, heads: list[Tensor]
) -> None:
    _, plain = gradients(Block(), heads)
    block = Block()
    checkpoint_activations(block, kept)  # type: ignore[arg-type]
    if compiled:
        block.compile()
    _, again = gradients(block, heads)
    for some, others in zip(again, plain, strict=True):
        assert torch.equal(some, others)


def test_a_bias_that_is_learned_has_its_gradient(heads: list[Tensor]) -> None:
    heads = [each[:, :, :KV_HEADS] for each in heads]
    bias = torch.zeros(KV_HEADS, 2 * SEQ - 1, dtype=torch.bfloat16, requires_grad=True)
    scoring = Scoring(0.2, SEQ, torch.device("cpu"), bias=lambda seq_len: bias)
    attend = bidirectional(scoring)
    gradients(lambda *heads: attend(0, *heads), heads)
    assert bias.grad is not None
    assert bias.grad.abs().sum() > 0
