"""FSDP's collectives beside the computing, on devices that have no streams.

On a GPU a collective waits in a stream of its own while the host goes on. On a CPU FSDP waits for each where
it starts it, so that all ranks meet three times a block, and each time for the one that was last held up.
Here a block's weights are fetched while the block before it computes, and its gradients are reduced while
the next one's are made: ranks may be a block apart.

    forward    compute 0 | fetch 1     compute 1 | fetch 2     …
    backward   compute n | fetch n−1   compute n−1 | reduce n, fetch n−2   …

Sums are the same, bit for bit.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.fsdp import FSDPModule


def overlap_collectives(model: nn.Module) -> None:
    """Let `model` (which has `.blocks`), sharded over all ranks, compute while collectives are under way.

    When `backward()` returns, gradients are reduced, as ever. Two things are to hold. A step has one backward
    pass that reduces gradients, as in gradient accumulation: to what is under way nothing can be added. And
    every forward pass is through all blocks: weights fetched for one that does not run would be old later.
    """
    reduce_scatter = _ReduceScatterBeside()
    modules: list[FSDPModule] = [model, *model.blocks]  # type: ignore[list-item, misc]
    for module in modules:
        module._set_unshard_async_op(True)  # Public for one call of `unshard`, not for those of the hooks.
        module.set_custom_reduce_scatter(reduce_scatter)
    for module, following in pairwise(modules):
        module.set_modules_to_forward_prefetch([following])


class _ReduceScatterBeside:
    """A reduce-scatter that is waited for when the next one begins, or the backward pass ends."""

    def __init__(self) -> None:
        self._under_way: dist.Work | None = None

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp,
        async_op: bool = False,
    ) -> None:
        self._wait()
        self._under_way = dist.reduce_scatter_single(output_tensor, input_tensor, op, group, async_op=True)
        # Called by autograd when all of this backward pass is done.
        Variable._execution_engine.queue_callback(self._wait)

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None
