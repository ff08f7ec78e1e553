"""The chunked loss against torch's cross-entropy over all logits, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from llm.training import loss as loss_module
from llm.training.loss import IGNORE, next_token_targets, summed_cross_entropy, with_z_loss
from llm.training.loss_chunks import rows_at_a_time

VOCAB, PADDED, WIDTH = 50, 64, 16


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, WIDTH, dtype=torch.float64)
    weight = torch.randn(PADDED, WIDTH, dtype=torch.float64)
    targets = torch.randint(VOCAB, (3, 7))
    targets[0, 2:5] = IGNORE
    targets[2] = IGNORE
    return hidden, weight, targets


def reference(hidden, weight, targets):
    logits = F.linear(hidden, weight[:VOCAB])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE)


@pytest.mark.parametrize("rows_at_a_time", [1, 4, 1000])
def test_loss_and_gradients_equal_full_logits(inputs, rows_at_a_time, monkeypatch):
    monkeypatch.setattr(loss_module, "rows_at_a_time", lambda *_: rows_at_a_time)
    hidden, weight, targets = inputs
    exact = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected = reference(*exact, targets)
    (expected * 0.25).backward()

    ours = [hidden.float().requires_grad_(), weight.float().requires_grad_()]
    actual = summed_cross_entropy(*ours, targets, VOCAB)
    (actual * 0.25).backward()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-5, atol=1e-6)
    assert (ours[1].grad[VOCAB:] == 0).all(), "padding of the vocabulary must not learn"

    below = hidden.float().requires_grad_()
    (summed_cross_entropy(below, weight.float(), targets, VOCAB) * 0.25).backward()
    assert torch.equal(below.grad, ours[0].grad), "a frozen head passes the same on"


@pytest.mark.parametrize("rows_at_a_time", [4, 1000])
@pytest.mark.parametrize("biased", [False, True])
def test_z_loss_and_its_gradients_equal_full_logits(inputs, rows_at_a_time, biased, monkeypatch):
    monkeypatch.setattr(loss_module, "rows_at_a_time", lambda *_: rows_at_a_time)
    hidden, weight, targets = inputs
    bias = torch.randn(PADDED, dtype=torch.float64) if biased else None
    exact = [t.clone().requires_grad_() for t in (hidden, weight, bias) if t is not None]
    logits = F.linear(exact[0], exact[1][:VOCAB], exact[2][:VOCAB] if biased else None)
    penalty = 0.1 * (logits.logsumexp(-1) ** 2)[targets != IGNORE].sum()
    flat = logits.flatten(0, 1)
    expected = F.cross_entropy(flat, targets.flatten(), reduction="sum", ignore_index=IGNORE) + penalty
    (expected * 0.25).backward()

    ours = [each.detach().float().requires_grad_() for each in exact]
    total, z_loss = with_z_loss(ours[0], ours[1], targets, VOCAB, *ours[2:], coefficient=0.1)
    (total * 0.25).backward()
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(z_loss.double(), penalty, rtol=1e-6, atol=0)
    assert not z_loss.requires_grad, "it is in the total already"
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-5, atol=1e-6)


def test_bf16_gradients_are_those_of_float64_but_for_rounding(inputs, monkeypatch):
    monkeypatch.setattr(loss_module, "rows_at_a_time", lambda *_: 4)
    hidden, weight, targets = inputs
    rounded = [each.bfloat16() for each in (hidden, weight / 4, torch.randn(PADDED))]
    exact = [each.double().requires_grad_() for each in rounded]
    logits = F.linear(exact[0], exact[1][:VOCAB], exact[2][:VOCAB])
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    ours = [each.requires_grad_() for each in rounded]
    summed_cross_entropy(ours[0], ours[1], targets, VOCAB, ours[2]).backward()
    for one, other in zip(ours, exact, strict=True):
        assert (one.grad.double() - other.grad).norm() < 0.01 * other.grad.norm()


def test_the_gradient_of_what_is_almost_certain_is_exact():
    """p = 1 / (1 + e⁻¹⁰). Where log Z is rounded at 80, e^(logit − log Z) − 1 is 0.8 % off."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[80.0], [70.0]])
    bias = torch.zeros(2, requires_grad=True)
    summed_cross_entropy(hidden, weight, torch.tensor([0]), 2, bias).backward()
    q = 1 / (1 + math.e**10)
    assert bias.grad.tolist() == pytest.approx([-q, q], rel=2e-3)


@given(rows=st.integers(1, 10**6), vocab=st.integers(1, 4000), on_gpu=st.booleans())
def test_chunks_are_even_and_aligned(rows, vocab, on_gpu):
    size = rows_at_a_time(rows, 64 * vocab, on_gpu)
    assert size % 64 == 0
    count = -(-rows // size)
    assert size * count - rows < 64 * count, "the last one is hardly smaller"
    assert size * 64 * vocab <= (2**28 if on_gpu else max(2**23, 512 * 64 * vocab)) + 64 * 64 * vocab


def test_bf16_sums_in_fp32():
    """4,000 equal losses of log 50: a sum held in bf16 would be off by far more than 0.1 %."""
    hidden = torch.zeros(4, 1000, WIDTH, dtype=torch.bfloat16)
    weight = torch.randn(PADDED, WIDTH).bfloat16()
    total = summed_cross_entropy(hidden, weight, torch.ones(4, 1000, dtype=torch.int64), VOCAB)
    assert total.item() == pytest.approx(4000 * torch.log(torch.tensor(50.0)).item(), rel=1e-4)


def test_targets_are_the_next_tokens_and_keep_only_learned_ones():
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert next_token_targets(tokens).tolist() == [[6, 7, 8, IGNORE]]
    mask = torch.tensor([[True, False, True, True]])
    assert next_token_targets(tokens, mask).tolist() == [[IGNORE, 7, 8, IGNORE]]
