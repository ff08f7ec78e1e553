"""Initial weights as a pure function of (seed, parameter name, shape).

Guarantee: the same values whether the module was built directly, or on the meta device and made real by
`to_empty`, whole or sharded over any number of ranks; and adding a parameter changes no other.
"""

import hashlib

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

BASE_STD = 0.02


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Fill every parameter of `model` (which has `.config`) in place; a DTensor takes its own shard."""
    n_layers = model.config.n_layers  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        value = initial_value(name, parameter.shape, n_layers, seed).to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(value)


def initial_value(name: str, shape: torch.Size, n_layers: int, seed: int) -> Tensor:
    """The fp32 CPU tensor that parameter `name` starts from.

    norms                          1
    scalar head                    N(0, 1/√(d_model + 1)), bias 0
    matrices ending in a residual  N(0, 0.02/√(2·n_layers))   (GPT-2: keeps the stream's variance with depth)
    every other matrix             N(0, 0.02)
    """
    module, _, kind = name.rpartition(".")
    if module.endswith("norm"):
        return torch.ones(shape)
    if kind == "bias":
        return torch.zeros(shape)
    if module == "scalar":
        std = (shape[-1] + 1) ** -0.5
    elif module.endswith(("attention.out", "mlp.down")):
        std = BASE_STD * (2 * n_layers) ** -0.5
    else:
        std = BASE_STD
    return torch.randn(shape, generator=generator_for(name, seed)) * std


def generator_for(name: str, seed: int) -> torch.Generator:
    """A CPU generator keyed by (seed, name)."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
