"""Next-token cross-entropy that never holds all logits, and the z-loss beside it.

    log Z = logsumexp(h Wᵀ)
    cross-entropy = Σ_valid log Z − (h Wᵀ)[target]
    z-loss = c · Σ_valid (log Z)²                      (PaLM: Chowdhery et al., 2022, arXiv:2204.02311)
    d (cross-entropy + z-loss) / d logits = (1 + 2c · log Z) · softmax(h Wᵀ) − onehot(target)

The z-loss keeps log Z near 0, which the cross-entropy leaves free to drift: in bf16 large logits are coarse.
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
    return with_z_loss(hidden, head_weight, targets, vocab_size, head_bias, coefficient=0.0)[0]


def with_z_loss(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    head_bias: Tensor | None = None,
    *,
    coefficient: float,
) -> tuple[Tensor, Tensor]:
    """(summed cross-entropy + summed z-loss, the z-loss in it), fp32 scalars; only the sum has a gradient.

    The first five arguments are those of `summed_cross_entropy`.
    """
    bias = None if head_bias is None else head_bias[:vocab_size]
    sums: tuple[Tensor, Tensor] = _SummedCrossEntropy.apply(
        hidden.flatten(0, -2),
        head_weight[:vocab_size],
        bias,
        targets.flatten(),
        coefficient,
        torch.is_grad_enabled(),
    )
    return sums


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
        coefficient: float,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """hidden (rows, d_model), weight (vocab, d_model), bias (vocab,), targets (rows,) -> fp32 scalars."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        z_loss = torch.zeros_like(total)
        grad_hidden = torch.empty_like(hidden)
        trained = ctx.needs_input_grad[1]  # A frozen head saves a third of the time and a table of fp32.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if trained else None
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for chunk in _chunks(len(hidden), len(weight)):
            logits = F.linear(hidden[chunk], weight, bias).float()
            valid = (targets[chunk] != IGNORE).unsqueeze(1)
            target = targets[chunk].unsqueeze(1).where(valid, 0)
            target_logit = logits.gather(1, target)
            # e^(logits − their maximum) in place of the logits: one exponential gives log Z and softmax.
            most = logits.amax(dim=-1, keepdim=True)
            exponentials = logits.sub_(most).exp_()
            sums = exponentials.sum(dim=-1, keepdim=True)
            log_normaliser = sums.log() + most
            total += (log_normaliser - target_logit).where(valid, 0).sum()
            if coefficient:
                z_loss += coefficient * log_normaliser.square().where(valid, 0).sum()
            if not with_gradient:
                continue
            weights = (1 + 2 * coefficient * log_normaliser) if coefficient else 1.0
            grad_logits = exponentials.mul_((weights / sums).where(valid, 0))
            grad_logits.scatter_add_(1, target, -valid.to(torch.float32))
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.T, hidden[chunk])
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(z_loss)
        return total + z_loss, z_loss

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        if grad_bias is not None:
            grad_bias = (grad_bias * grad).to(ctx.weight_dtype)
        return grad_hidden * grad, grad_weight, grad_bias, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, without a matrix of the product where the dtypes allow it."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _chunks(rows: int, vocab: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocab)
    return [slice(start, start + size) for start in range(0, rows, size)]
