"""Sharding with FSDP2: parameters, gradients and optimizer state are split over ranks, block by block."""

from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from llm.models.experts import expert_matrices
from llm.training.parallel.overlap import overlap_collectives
from llm.training.precision import Precision


def data_mesh(device: torch.device) -> DeviceMesh:
    """All ranks of the initialised process group in one dimension."""
    return init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("data",))


def shard(
    model: nn.Module,
    mesh: DeviceMesh,
    precision: Precision,
    rest: DeviceMesh | None = None,
    experts: DeviceMesh | None = None,
) -> None:
    """Shard `model` (which has `.blocks`) in place: each block, then the root with tables, norms and head.

    In bf16, matmuls and activations are bf16 while the weights that the optimizer moves, and every sum of
    gradients over micro-batches and ranks, stay fp32. One rank is sharded too, for the sake of the precision;
    in fp32 there is then nothing to do, and the hooks would only take time. (One of several is a stage of a
    pipeline: plain tensors are those that all ranks have.)

    The root, too, goes back to its shards after every forward pass. Left whole, as is torch's default, an
    evaluation before the optimizer is made would hand it tensors that nobody trains.

    Gradients are summed over ranks, not averaged: the step has divided by the global token count. The
    factor and the forced plain sum go together, since gloo has no other reduction.

    Args:
        mesh: one dimension over which to shard; or two, of which the first holds copies (HSDP).
        rest: what shards the root, if it is not the same.
        experts: what shards the experts' matrices, if not what shards the other parameters of a block.
    """
    rest = rest or mesh
    if dist.get_world_size() == 1 and precision == "fp32":
        return
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.blocks:  # type: ignore[union-attr]
        if experts is not None:
            matrices, within = expert_matrices(block), partial(_inside_matrices, experts)
            fully_shard(matrices, mesh=experts, mp_policy=policy, shard_placement_fn=within)
        within = partial(_inside_matrices, mesh)
        fully_shard(block, mesh=mesh, mp_policy=policy, shard_placement_fn=within)
    fully_shard(model, mesh=rest, mp_policy=policy, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    if mesh.device_type == "cpu" and mesh.ndim == 1 and mesh.size() == dist.get_world_size() > 1:
        overlap_collectives(model)


def _inside_matrices(mesh: DeviceMesh, parameter: nn.Parameter) -> Shard | None:
    """Experts' matrices, which are stacked, are cut by their rows: there may be more ranks than experts."""
    evenly = parameter.ndim == 3 and parameter.shape[1] % mesh.size(-1) == 0
    return Shard(1) if evenly else None
