"""The process groups of a layout: one set of ranks under the names that each way of dividing needs."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llm.models.fused import TENSOR
from llm.training.parallel.layout import ParallelLayout, Place

EXPERT = "expert"
"""Name of the mesh dimension whose ranks divide experts."""


@dataclass(frozen=True)
class Ranks:
    """All ranks of a run as this one sees them."""

    layout: ParallelLayout
    place: Place
    """Where this rank stands."""
    blocks: DeviceMesh
    """What shards the parameters of blocks: [replicate,] shard · context."""
    rest: DeviceMesh
    """What shards all others: [replicate,] shard · context · tensor. Outside of matmuls with divided matrices
    a tensor rank has tokens of its own, just as a data rank has.
    """
    tensor: DeviceMesh
    """The ranks that divide matrices with this one."""
    experts: DeviceMesh
    """What shards the parameters of experts: [replicate,] shard · context · tensor / expert."""
    expert: DeviceMesh
    """The ranks that divide experts with this one."""
    context: dist.ProcessGroup
    """The ranks that divide rows with this one."""
    rows: dist.ProcessGroup
    """Likewise, and those that divide matrices and so the rows between these."""
    pipeline: dist.ProcessGroup
    """The stages that this one is one of."""


def arrange(layout: ParallelLayout, device: torch.device) -> Ranks:
    """Make the process groups. Every rank calls it.

    Raises:
        LayoutError: there are not as many ranks as the layout takes.
    """
    layout.check_ranks(dist.get_world_size())
    outer, sharding = (layout.pipeline, layout.replicate), layout.shard * layout.context
    blocks = init_device_mesh(
        device.type,
        (*outer, sharding, layout.tensor),
        mesh_dim_names=("pipeline", "replicate", "shard", TENSOR),
    )
    rest = init_device_mesh(
        device.type,
        (*outer, sharding * layout.tensor),
        mesh_dim_names=("pipeline", "replicate", "shard"),
    )
    rows = init_device_mesh(
        device.type,
        (*outer, layout.shard, layout.context, layout.tensor),
        mesh_dim_names=("pipeline", "replicate", "shard", "context", TENSOR),
    )
    experts = init_device_mesh(
        device.type,
        (*outer, layout.neighbours // layout.expert, layout.expert),
        mesh_dim_names=("pipeline", "replicate", "shard", EXPERT),
    )
    row = init_device_mesh(
        device.type,
        (layout.pipeline * layout.data, layout.context * layout.tensor),
        mesh_dim_names=("share", "row"),
    )
    data = ("replicate", "shard") if layout.replicate > 1 else "shard"
    return Ranks(
        layout,
        layout.place(dist.get_rank()),
        blocks[data],
        rest[data],
        blocks[TENSOR],
        experts[data],
        experts[EXPERT],
        rows["context"].get_group(),
        row["row"].get_group(),
        blocks["pipeline"].get_group(),
    )
