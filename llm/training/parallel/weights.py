"""Whole weights of a divided model, and the way back: names, shapes and rows are those of one rank."""

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper

from llm.models.fused import fused_rows, in_its_order, in_model_order, ranks_dividing
from llm.training.parallel.ranks import Ranks

# It warns that a parameter which is sharded and divided is gathered in two steps: there is no hurry here.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


def gather_weights(model: nn.Module, ranks: Ranks | None = None) -> dict[str, Tensor]:
    """Whole fp32 weights by name on the CPU of rank 0; an empty dict elsewhere. Every rank must call it.

    One parameter is gathered at a time, so that a device never holds more than its shard and that parameter.

    ranks: how the model is divided, if into stages.
    """
    stages = ranks.layout.pipeline if ranks else 1
    keep = not dist.is_initialized() or dist.get_rank() % (dist.get_world_size() // stages) == 0
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            whole = in_model_order(whole, name, value, model.config) if ranks_dividing(value) > 1 else whole
            weights[name] = whole.detach().to("cpu", torch.float32, copy=True)
    if ranks is None or stages == 1:
        return weights
    first = ranks.place.pipeline == 0
    of_all: list[dict[str, Tensor]] | None = [{} for _ in range(stages)] if first else None
    dist.gather_object(weights, of_all, group=ranks.pipeline, group_dst=0)
    return {name: value for stage in of_all or [] for name, value in stage.items()}


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
            if ranks_dividing(parameter) > 1:
                value = in_its_order(value, name, parameter, model.config)
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(value)


def in_model_rows(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a training run, by names that hold those of `model`'s parameters, as a checkpoint
    describes them on any layout.
    """
    return {name: with_model_rows(value, name, model) for name, value in tensors.items()}


def with_model_rows(value: Tensor, name: str, model: nn.Module) -> Tensor:
    """`value`, a tensor shaped as parameter `name`, as a checkpoint describes it: the same memory, with each
    run of its rows at the place that it has in the model's own order.
    """
    ranks = ranks_dividing(value)
    rows: Any = fused_rows(name, model.config) if ranks > 1 else None
    if rows is None or not isinstance(value, DTensor):
        return value
    local, places = value.to_local(), own_places(value, rows, ranks)
    start, pieces, offsets = 0, [], []
    for place, count in places:
        pieces.append(local.narrow(0, start, count))
        offsets.append((place,) + (0,) * (local.ndim - 1))
        start += count
    return DTensor(LocalShardsWrapper(pieces, offsets), value._spec, requires_grad=False)


def own_places(value: DTensor, rows: tuple[int, ...], ranks: int) -> list[tuple[int, int]]:
    """(first row in the model's order, number of rows) of each run of rows that this rank holds."""
    mesh = value.device_mesh
    tensor_rank, held = mesh.get_local_rank("tensor"), value.to_local().shape[0]
    divided = value.shape[0] // ranks
    shards = mesh.size(mesh.mesh_dim_names.index("shard")) if "shard" in mesh.mesh_dim_names else 1
    shard = mesh.get_local_rank("shard") if shards > 1 else 0
    first = min(shard * -(-divided // shards), divided)
    places, part_start, start = [], 0, 0
    for part in rows:
        mine = part // ranks
        low, high = max(first, start), min(first + held, start + mine)
        if low < high:
            places.append((part_start + tensor_rank * mine + low - start, high - low))
        part_start, start = part_start + part, start + mine
    return places or [(value.shape[0], 0)]  # beyond the end, where no other rank's rows are
