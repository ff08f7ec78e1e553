"""Next-token cross-entropy that never holds all logits.

    loss = Σ_valid logsumexp(h Wᵀ) − (h Wᵀ)[target]
    d loss / d logits = softmax(h Wᵀ) − onehot(target)

Logits of a few thousand rows exist at a time: gradients are taken in the forward pass, chunk by chunk, and
only scaled in the backward pass. Matmuls run in the inputs' dtype, the softmax and every sum in fp32.
(torch's own `linear_cross_entropy` does the same, but on a CPU it multiplies in fp32, 2.5 times slower than
bf16.)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Target of a position that has nothing to predict: padding, prompts, the end of a sample."""

CHUNK_ELEMENTS = 1 << 21
"""Logits that exist at a time: 8 MiB in fp32, about a CPU's share of the last-level cache."""


def summed_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    head_bias: Tensor | None = None,
) -> Tensor:
    """Sum over valid positions of −log p(target), in nats, an fp32 scalar.

    Args:
        hidden: (…, d_model), any floating dtype.
        head_weight: (padded_vocab_size, d_model), the same dtype; rows from `vocab_size` on are left out.
        targets: (…) int64, `IGNORE` where there is nothing to predict.
        vocab_size: ids that may be predicted.
        head_bias: (padded_vocab_size,), added to the logits.
    """
    bias = None if head_bias is None else head_bias[:vocab_size]
    loss: Tensor = _SummedCrossEntropy.apply(
        hidden.flatten(0, -2), head_weight[:vocab_size], bias, targets.flatten(), torch.is_grad_enabled()
    )
    return loss


def next_token_targets(tokens: Tensor, loss_mask: Tensor | None = None) -> Tensor:
    """tokens (batch, seq) -> targets (batch, seq): position t predicts token t + 1, the last position
    nothing.

    loss_mask (batch, seq) bool: True for tokens that are learned; the others are not predicted.
    """
    targets = torch.full_like(tokens, IGNORE)
    targets[:, :-1] = tokens[:, 1:]
    if loss_mask is not None:
        targets[:, :-1].masked_fill_(~loss_mask[:, 1:], IGNORE)
    return targets


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        with_gradient: bool,
    ) -> Tensor:
        """hidden (rows, d_model), weight (vocab, d_model), bias (vocab,), targets (rows,) -> fp32 scalar."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        trained = ctx.needs_input_grad[1]  # A frozen head saves a third of the time and a table of fp32.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if trained else None
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for chunk in _chunks(len(hidden), len(weight)):
            logits = F.linear(hidden[chunk], weight, bias).float()
            log_normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
            valid = (targets[chunk] != IGNORE).unsqueeze(1)
            target = targets[chunk].unsqueeze(1).where(valid, 0)
            total += (log_normaliser - logits.gather(1, target)).where(valid, 0).sum()
            if not with_gradient:
                continue
            grad_logits = logits.sub_(log_normaliser).exp_()
            grad_logits.scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
            grad_logits = grad_logits.mul_(valid)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[chunk]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        if grad_bias is not None:
            grad_bias = (grad_bias * grad).to(ctx.weight_dtype)
        return grad_hidden * grad, grad_weight, grad_bias, None, None


def _chunks(rows: int, vocab: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocab)
    return [slice(start, start + size) for start in range(0, rows, size)]
