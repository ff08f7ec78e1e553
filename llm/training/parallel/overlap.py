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
    """Let the blocks of `model`, all sharded over all ranks, compute while collectives are under way.

    When `backward()` returns, gradients are reduced, as ever. There must be one backward pass a step that
    reduces gradients, as in gradient accumulation: to ones that are under way nothing could be added.
    """
    reduce_scatter = _ReduceScatterBeside()
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module._set_unshard_async_op(True)  # Public for one call of `unshard`, not for those of the hooks.
        module.set_custom_reduce_scatter(reduce_scatter)
    for module, following in pairwise(modules):
        module.set_modules_to_forward_prefetch([following])


class _ReduceScatterBeside:
    """A reduce-scatter that is waited for when the next one begins, or the backward pass ends."""

    def __init__(self) -> None:
        self._under_way: dist.Work | None = None
        self._ends_with_pass = False

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
        if not self._ends_with_pass:
            self._ends_with_pass = True
            Variable._execution_engine.queue_callback(self._end)

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None

    def _end(self) -> None:
        self._ends_with_pass = False
        self._wait()
