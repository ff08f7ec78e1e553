"""A moving average of the weights: smoother than the last of them, and often better.

    average_t = Σ_i d^(t − i) · w_i / Σ_i d^(t − i)        over the steps i = 1 … t that were taken

The divisor is Adam's correction of bias: without it an average begun at the first weights would still hold
d^t of them. It runs as  average ← average + (1 − d) / (1 − d^t) · (w_t − average).
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llm.training.optimizer import begin_state

AVERAGE, TAKEN = "average", "averaged_steps"
"""Keys of a parameter's state: the average, in fp32 and sharded as the parameter, and t."""


def average_weights(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Average all weights that `optimizer` moves, after each of its steps from now on.

    The averages are part of its state, and so of checkpoints.
    """
    begin_state(optimizer)
    for parameter in _parameters(optimizer):
        optimizer.state[parameter][AVERAGE] = torch.zeros_like(parameter)
        optimizer.state[parameter][TAKEN] = torch.zeros((), dtype=torch.int64)  # on the CPU, to be read

    @torch.no_grad()
    def after_step(*_: object) -> None:
        for parameter in _parameters(optimizer):
            state = optimizer.state[parameter]
            state[TAKEN] += 1
            _local(state[AVERAGE]).lerp_(_local(parameter), (1 - decay) / (1 - decay ** state[TAKEN].item()))

    optimizer.register_step_post_hook(after_step)


@torch.no_grad()
def take_average(optimizer: torch.optim.Optimizer) -> None:
    """Put the averages in the place of the weights, where there are any of at least one step."""
    for parameter in _parameters(optimizer):
        state = optimizer.state[parameter]
        if AVERAGE in state and state[TAKEN].item():
            parameter.copy_(state[AVERAGE])


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
