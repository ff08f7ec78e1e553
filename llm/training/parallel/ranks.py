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
    expert: DeviceMesh | None
    """The ranks that divide experts with this one; None where each has all."""
    context: dist.ProcessGroup
    """The ranks that divide rows with this one, if some do by context."""
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

    def mesh(**inner: int) -> DeviceMesh:
        sizes = (layout.pipeline, layout.replicate, *inner.values())
        return init_device_mesh(device.type, sizes, mesh_dim_names=("pipeline", "replicate", *inner))

    # Each dimension of a mesh is a process group, which takes threads or buffers: none is made in vain.
    tensor, parts = layout.tensor, layout.context * layout.tensor
    blocks = mesh(shard=layout.shard * layout.context, **{TENSOR: tensor})
    rest = mesh(shard=layout.neighbours) if tensor > 1 else blocks
    experts = rest
    if layout.expert > 1:
        experts = mesh(shard=layout.neighbours // layout.expert, **{EXPERT: layout.expert})
    context = rows = blocks[TENSOR].get_group()
    if layout.context > 1:
        by_context = mesh(shard=layout.shard, context=layout.context, **{TENSOR: tensor})
        context = rows = by_context["context"].get_group()
    if layout.context > 1 and tensor > 1:
        rows = mesh(shard=layout.shard, rows=parts)["rows"].get_group()
    data = ("replicate", "shard") if layout.replicate > 1 else "shard"
    return Ranks(
        layout,
        layout.place(dist.get_rank()),
        blocks[data],
        rest[data],
        blocks[TENSOR],
        experts[data],
        experts[EXPERT] if layout.expert > 1 else None,
        context,
        rows,
        blocks["pipeline"].get_group(),
    )
