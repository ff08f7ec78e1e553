"""Sharding with FSDP2: parameters, gradients and optimizer state are split over all ranks, block by block."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from llm.training.precision import Precision


def data_mesh(device: torch.device) -> DeviceMesh:
    """All ranks of the initialised process group in one dimension."""
    return init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("data",))


def shard(model: nn.Module, mesh: DeviceMesh, precision: Precision) -> None:
    """Shard `model` (which has `.blocks`) in place: each block, then the root with tables, norms and head.

    In bf16, matmuls and activations are bf16 while the weights that the optimizer moves, and every sum of
    gradients over micro-batches and ranks, stay fp32. One rank is sharded too, for the sake of the precision;
    in fp32 there is then nothing to do, and the hooks would only take time.

    The root, too, goes back to its shards after every forward pass. Left whole, as is torch's default, an
    evaluation before the optimizer is made would hand it tensors that nobody trains.

    Gradients are summed over ranks, not averaged: the step has divided by the global token count. The
    factor and the forced plain sum go together, since gloo has no other reduction.
    """
    if mesh.size() == 1 and precision == "fp32":
        return
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Whole fp32 weights by name on the CPU of rank 0; an empty dict elsewhere. Every rank must call it.

    One parameter is gathered at a time, so that a device never holds more than its shard and that parameter.
    """
    keep = not dist.is_initialized() or dist.get_rank() == 0
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            weights[name] = whole.detach().to("cpu", torch.float32, copy=True)
    return weights


@torch.no_grad()
def scatter_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill `model`, sharded or not, with whole weights that every rank has; each takes its own shard of them.

    Raises:
        ValueError: the names differ.
    """
    parameters = dict(model.named_parameters())
    if parameters.keys() != weights.keys():
        differing = sorted(parameters.keys() ^ weights.keys())
        raise ValueError(f"the weights are not of this model: {', '.join(differing[:3])} on one side only")
    for name, parameter in parameters.items():
        value = weights[name].to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(value)
