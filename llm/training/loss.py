"""Next-token cross-entropy that never holds all logits, and the z-loss beside it.

    log Z = logsumexp(h Wᵀ)
    cross-entropy = Σ_valid log Z − (h Wᵀ)[target]
    z-loss = c · Σ_valid (log Z)²                      (PaLM: Chowdhery et al., 2022, arXiv:2204.02311)
    d (cross-entropy + z-loss) / d logits = (1 + 2c · log Z) · softmax(h Wᵀ) − onehot(target)

The z-loss keeps log Z near 0, which the cross-entropy leaves free to drift: in bf16 large logits are coarse.
Logits of some rows exist at a time (`loss_chunks.py`): gradients are taken in the forward pass, chunk by
chunk, and only scaled in the backward pass. Matmuls run in the inputs' dtype, the softmax and every sum in
fp32. (torch's own `linear_cross_entropy` does the same, but on a CPU it multiplies in fp32, 2.5 times slower
than bf16.)

The table of the head has some rows more than the vocabulary, so that matmuls are aligned. Their logits count
as −∞.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.training.loss_chunks import rows_at_a_time

IGNORE = -100
"""Target of a position that has nothing to predict: padding, prompts, the end of a sample."""


def summed_cross_entropy(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    head_bias: Tensor | None = None,
    compiled: bool = False,
) -> Tensor:
    """Sum over valid positions of −log p(target), in nats, an fp32 scalar.

    Args:
        hidden: (…, d_model), any floating dtype.
        head_weight: (padded_vocab_size, d_model), the same dtype; rows from `vocab_size` on are left out.
        targets: (…) int64, `IGNORE` where there is nothing to predict.
        vocab_size: ids that may be predicted.
        head_bias: (padded_vocab_size,), added to the logits.
        compiled: on a GPU, whether torch.compile makes what is done to logits a kernel or two, where it is a
            dozen. On a CPU that is slower.
    """
    return with_z_loss(hidden, head_weight, targets, vocab_size, head_bias, compiled, coefficient=0.0)[0]


def with_z_loss(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    head_bias: Tensor | None = None,
    compiled: bool = False,
    *,
    coefficient: float,
) -> tuple[Tensor, Tensor]:
    """(summed cross-entropy + summed z-loss, the z-loss in it), fp32 scalars; only the sum has a gradient.

    The first six arguments are those of `summed_cross_entropy`.
    """
    sums: tuple[Tensor, Tensor] = _SummedCrossEntropy.apply(
        hidden.flatten(0, -2),
        head_weight,
        head_bias,
        targets.flatten(),
        vocab_size,
        coefficient,
        _compiled() if compiled and hidden.is_cuda else _loss_and_gradient,
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
        vocab_size: int,
        coefficient: float,
        loss_and_gradient: Callable[..., tuple[Tensor, Tensor, Tensor | None]],
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """hidden (rows, d_model), weight (padded_vocab_size, d_model), bias (padded_vocab_size,), targets
        (rows,) -> fp32 scalars.
        """
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        z_loss = torch.zeros_like(total)
        grad_hidden = torch.empty_like(hidden)
        trained = ctx.needs_input_grad[1]  # A frozen head saves a third of the time and a table of fp32.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if trained else None
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        size = rows_at_a_time(len(hidden), len(weight), hidden.is_cuda)
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            loss, z, grad_logits = loss_and_gradient(
                F.linear(hidden[chunk], weight, bias), targets[chunk], vocab_size, coefficient, with_gradient
            )
            total += loss
            z_loss += z
            if grad_logits is None:
                continue
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=torch.float32)
            torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.T, hidden[chunk])
            del grad_logits  # or it would be there beside the next chunk's
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(z_loss)
        return total + z_loss, z_loss

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        if grad_bias is not None:
            grad_bias = (grad_bias * grad).to(ctx.weight_dtype)
        return grad_hidden * grad, grad_weight, grad_bias, None, None, None, None, None


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, vocab_size: int, coefficient: float, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """logits (rows, padded_vocab_size), which may be overwritten, targets (rows,) -> the summed cross-entropy
    and z-loss, fp32 scalars, and the gradient of both by the logits, like these, or None.
    """
    dtype, logits = logits.dtype, logits.float()
    logits[:, vocab_size:] = -torch.inf
    valid = (targets != IGNORE).unsqueeze(1)
    target = targets.unsqueeze(1).where(valid, 0)
    target_logit = logits.gather(1, target)
    # e^(logits − their maximum) in place of the logits: one exponential gives log Z and softmax.
    most = logits.amax(dim=-1, keepdim=True)
    exponentials = logits.sub_(most).exp_()
    sums = exponentials.sum(dim=-1, keepdim=True)
    log_normaliser = sums.log() + most
    loss = (sums.log() + (most - target_logit)).where(valid, 0).sum()
    z_loss = coefficient * log_normaliser.square().where(valid, 0).sum()
    if not with_gradient:
        return loss, z_loss, None
    weights = (1 + 2 * coefficient * log_normaliser).where(valid, 0)
    gradient = exponentials.mul_(weights / sums)
    # p − 1 is taken in fp32 and then rounded: of a p that was rounded first it would leave little.
    at_target = weights * ((target_logit - most).exp() / sums) - valid.to(torch.float32)
    if gradient.is_cuda:  # The sooner it is rounded the fewer bytes are moved;
        return loss, z_loss, gradient.to(dtype).scatter_(1, target, at_target.to(dtype))
    # but a CPU's scatter makes a copy in fp32 of all that is not.
    return loss, z_loss, gradient.scatter_(1, target, at_target).to(dtype)


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor, Tensor | None]]:
    return torch.compile(_loss_and_gradient)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, without a matrix of the product where there is a kernel for it."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b
