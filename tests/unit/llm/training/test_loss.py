"""The chunked loss against torch's cross-entropy over all logits, in float64."""

import pytest
import torch
import torch.nn.functional as F

from llm.training import loss as loss_module
from llm.training.loss import IGNORE, next_token_targets, summed_cross_entropy, with_z_loss

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
