"""Matrix products in float8, for GPUs that have it (Micikevicius et al., 2022, arXiv:2209.05433).

Inputs, weights and gradients of the blocks' linear layers are rounded to 8 bits just before they are
multiplied, each row with a scale of its own. Weights that the optimizer moves stay fp32, and what is not
a matrix product of a block, the vocabulary head too, stays as it was; so do experts, which are stacks, and
their router, whose choices rounding would change. It is torchao's work.
"""

import dataclasses
from importlib.util import find_spec

import torch
import torch.distributed as dist
from torch import nn

from llm.training.precision import PrecisionError

_MULTIPLE = 16
"""Of which both sides of a matrix must be multiples."""
_CAPABILITY = (9, 0)


def use_float8(model: nn.Module, device: torch.device) -> None:
    """Let the blocks of `model` multiply in float8; before it is sharded or compiled. Every rank calls it.

    Raises:
        PrecisionError: not all ranks have a GPU that can and torchao, or no matrix has a shape for it.
    """
    possible = torch.tensor(int(_has_float8(device)), device=device)
    if dist.is_initialized():
        dist.all_reduce(possible, dist.ReduceOp.MIN)
    if not possible.item():
        raise PrecisionError(
            "float8 takes GPUs of compute capability 9.0, H100 or later, and torchao (pip install "
            "manta-llm[float8]) on every worker; leave --float8 out"
        )
    convert(model)


def convert(model: nn.Module, emulate: bool = False) -> None:
    """Replace the linear layers of the blocks in place; parameters keep their names.

    emulate: round to float8 and multiply in what there is, on any device, for tests.

    Raises:
        PrecisionError: no layer has a width and a height of multiples of 16.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def fits(module: nn.Module, name: str) -> bool:
        plain = type(module) is nn.Linear  # not one with an adapter, which would be lost
        fitting = plain and not any(size % _MULTIPLE for size in module.weight.shape)
        return fitting and not name.endswith("router")

    blocks = list(model.blocks)  # type: ignore[arg-type]
    if not any(fits(each, name) for block in blocks for name, each in block.named_modules()):
        raise PrecisionError(f"float8 needs matrices whose sides are multiples of {_MULTIPLE}")
    config = dataclasses.replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=emulate)
    for block in blocks:
        convert_to_float8_training(block, module_filter_fn=fits, config=config)


def _has_float8(device: torch.device) -> bool:
    if device.type != "cuda" or find_spec("torchao") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _CAPABILITY
