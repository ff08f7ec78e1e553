"""The tensors of a training run by name, and copies of them that training does not touch."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llm.training.optimizer import begin_state

WEIGHTS = "model."
"""What the names of the model's own tensors begin with."""


def named_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of a training run by a name of its own; optimizer state that is not there yet is made.

    Hyper-parameters are not among them: they come from the configuration, and would be pickled. Nor are
    frozen weights: a run has them from where it began.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = dict(model.named_parameters()).keys() - trained.keys()
    state_dict = model.state_dict()
    tensors = {f"{WEIGHTS}{name}": tensor for name, tensor in state_dict.items() if name not in frozen}
    begin_state(optimizer)
    for name, parameter in trained.items():
        state = optimizer.state.get(parameter, {})
        tensors |= {in_state(name, key): value for key, value in state.items()}
    return tensors


def in_state(parameter: str, key: str) -> str:
    """The name of a tensor of the optimizer's state of a parameter."""
    return f"optimizer.{parameter}.{key}"


class Staging:
    """One copy of a run's tensors in CPU memory, of this rank's shards alone. Its memory is used again."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors, sharded alike, with the values of this moment. Good until the next call."""
        copies: dict[str, Tensor] = {}
        on_gpu = False
        for name, tensor in tensors.items():
            shard = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
            on_gpu |= shard.is_cuda
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != shard.shape or buffer.dtype != shard.dtype:
                # Pinned memory is copied to at several times the speed, and beside the kernels.
                buffer = torch.empty(shard.shape, dtype=shard.dtype, pin_memory=shard.is_cuda)
                self._buffers[name] = buffer
            buffer.copy_(shard, non_blocking=shard.is_cuda)
            # Not `from_local`, which moves the shard back to the device of the mesh.
            is_sharded = isinstance(tensor, DTensor)
            copies[name] = DTensor(buffer, tensor._spec, requires_grad=False) if is_sharded else buffer
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return copies
