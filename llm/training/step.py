"""One optimizer step over a global batch, on any number of ranks and in any number of micro-batches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from llm.training.loss import IGNORE
from llm.training.optimizer import set_learning_rate
from llm.training.outliers import Outliers
from llm.training.parallel.norm import scale_down, total_norm

MicroBatch = tuple[Tensor, ...]
"""What the model is given, each (sequences, …), and last the targets (sequences, seq) int64, which are
`IGNORE` where nothing is predicted. Of a decoder or an encoder: tokens and targets, of one shape.
"""

LossSum = Callable[..., Tensor | tuple[Tensor, Tensor]]
"""The tensors of a micro-batch -> its summed loss, a scalar with a gradient; or that and the z-loss that is
in it, a scalar without one.
"""


Backward = Callable[[Sequence[MicroBatch], int], Tensor]
"""(micro-batches, valid tokens of the global batch) -> (2,): the summed loss of those of this rank, and the
z-loss that is in it. Adds the gradient of the first divided by the tokens.
"""


@dataclass(frozen=True)
class StepResult:
    """What a step did; equal on every rank."""

    loss: float
    """Mean loss per valid token of the global batch, in nats, without the z-loss."""
    z_loss: float
    """Mean z-loss per valid token; 0 where there is none."""
    grad_norm: float
    """Global norm of the gradient before clipping."""
    tokens: int
    """Valid tokens in the global batch."""
    taken: bool
    """Whether the weights have moved: not if the step was an outlier."""


class NonFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite. Raised before the optimizer step: the weights are still
    good.
    """


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroBatch],
    loss_sum: LossSum,
    learning_rate: float,
    clip_norm: float,
    copies: int = 1,
    backward: Backward | None = None,
    outliers: Outliers | None = None,
) -> StepResult:
    """Take one step with this rank's share of the global batch, unless it is one of the `outliers`.

        gradient = Σ_ranks Σ_micro-batches ∇ loss_sum / (valid tokens of the global batch)

    The divisor is global, so that neither padding nor the split over ranks and micro-batches changes the
    result (a mean of means would). The gradient is clipped to a global norm of `clip_norm`, 0 for never.

    Args:
        copies: ranks that are given the same rows, of which each makes a part of the loss.
        backward: adds the gradient of Σ loss_sum / tokens; by default one micro-batch after the other does.

    Raises:
        NonFiniteError: the loss or the gradient norm is NaN or infinite, on every rank alike.
        ValueError: no token of the global batch is valid.
    """
    valid = torch.stack([(micro_batch[-1] != IGNORE).sum() for micro_batch in micro_batches]).sum()
    tokens = int(_sum_over_ranks(valid).item()) // copies
    if tokens == 0:
        raise ValueError("no token of the batch is to be predicted: every target is masked")

    totals = (backward or partial(_one_by_one, model, loss_sum))(micro_batches, tokens)
    mean, mean_z_loss = (_sum_over_ranks(totals.double()) / tokens).tolist()

    if not math.isfinite(mean):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(f"the loss is {mean}")
    mean -= mean_z_loss
    grad_norm = clip_gradients(model, clip_norm)
    taken = outliers is None or not outliers.is_outlier(mean, grad_norm)
    if taken:
        set_learning_rate(optimizer, learning_rate)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(mean, mean_z_loss, grad_norm, tokens, taken)


def _one_by_one(
    model: nn.Module, loss_sum: LossSum, micro_batches: Sequence[MicroBatch], tokens: int
) -> Tensor:
    """Backward passes through every micro-batch; returns the sums of their losses, (2,) fp64."""
    totals = torch.zeros(2, dtype=torch.float64, device=micro_batches[0][0].device)
    for index, micro_batch in enumerate(micro_batches):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(index == len(micro_batches) - 1)
        loss, z_loss = _with_z_loss(loss_sum(*micro_batch))
        (loss / tokens).backward()
        totals += torch.stack((loss.detach(), z_loss))
    return totals


def _with_z_loss(loss: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return loss if isinstance(loss, tuple) else (loss, torch.zeros_like(loss))


def clip_gradients(model: nn.Module, clip_norm: float) -> float:
    """Scale the accumulated gradients down to a global norm of at most `clip_norm`; returns the norm before.

    Raises:
        NonFiniteError: the norm is NaN or infinite; the gradients are cleared.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm = total_norm(gradients)
    if not math.isfinite(grad_norm):
        model.zero_grad(set_to_none=True)
        raise NonFiniteError(f"the gradient's norm is {grad_norm}")
    if clip_norm > 0:
        scale_down(gradients, grad_norm, clip_norm)
    return grad_norm


def _sum_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value
