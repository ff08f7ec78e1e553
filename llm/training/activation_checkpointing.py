"""Activation checkpointing: what a block computes on its way forward is thrown away and computed again in the
backward pass (Chen et al., 2016, arXiv:1604.06174).

    none         all is kept
    full         only the input of each block is kept; a third more matmuls
    selective    matrix products and attention are kept; norms, activations and rotations are computed again

The same kernels see the same numbers, so the gradients are the same to the last bit.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from llm.training.recipe import Activations

DEAR = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._grouped_mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
"""Operations whose results are dear: matrix products, and attention by any of torch's fused kernels."""

# Names of ranges for profilers. Selective checkpointing counts operations, and FSDP around experts gives
# itself more of these when it computes again than the first time.
torch.utils.checkpoint.SAC_IGNORED_OPS |= {
    torch.ops.profiler._record_function_enter_new.default,
    torch.ops.profiler._record_function_exit._RecordFunction,
}


def checkpoint_activations(block: nn.Module, kept: Activations) -> None:
    """Let `block` keep only so much of each forward pass, from the next one on.

    Its parameters keep their names. Compiling and `fully_shard` go around it: call this before the first, and
    before or after the second, whose hooks stay outside in either case. No random numbers are drawn in a
    block, so their state is not kept.
    """
    if kept == "none":
        return
    forward = block.forward
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if kept == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, DEAR)

    def checkpointed(*arguments: Any) -> Tensor:  # a function, which torch.compile sees through
        return checkpoint(forward, *arguments, **options)

    block.forward = checkpointed  # type: ignore[method-assign]
