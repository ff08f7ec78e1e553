"""Initial weights as a pure function of (seed, parameter name, shape).

Guarantee: the same values whether the module was built directly, or on the meta device and made real by
`to_empty`, whole or sharded over any number of ranks; and adding a parameter changes no other.
"""

import hashlib
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from llm.models.config import ModelConfig
from llm.models.fused import in_its_order

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SMALL_STD = 0.02


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Fill every parameter of `model` (which has `.config`) in place; a DTensor takes its own shard."""
    config: ModelConfig = model.config  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        value = initial_value(name, parameter.shape, config, seed).to(parameter.device, parameter.dtype)
        if hasattr(parameter, "placements"):
            # Takes a second to import, which models that only generate need not wait for.
            from torch.distributed.tensor import distribute_tensor

            sharded = cast("DTensor", parameter)
            value = in_its_order(value, name, parameter, config)
            value = distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)
        parameter.copy_(value)


def initial_value(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """The fp32 CPU tensor that parameter `name` starts from.

    weights of norms               1
    biases                         0
    scalar head                    N(0, 1/√(d_model + 1))
    embedding                      N(0, 1): the residual stream begins as large as what blocks add to it
    vocabulary head                N(0, 0.02), also of an embedding that is the head too
    positions, token types         N(0, 0.02)
    relative position bias         0: no distance is dearer than another
    matrices ending in a residual  N(0, 1/√(fan_in · 2 · n_layers))   (GPT-2: keeps the variance with depth)
    every other matrix             N(0, 1/√fan_in)                    (keeps the variance through the layer)

    Where the embedding is scaled on its way in, or the hidden states on their way out, the table is as much
    larger or smaller. Queries of a model that does not divide scores by √head_dim are as much smaller.

    Seen on 0.4M tokens of Python with the quickstart's model: an embedding of N(0, 1) beside a head of its
    own reaches 4.8 nats per token where one tied table of N(0, 0.02) is at 6.2.
    """
    module, _, kind = name.rpartition(".")
    if kind in ("bias", "head_bias") or module.endswith("relative"):
        return torch.zeros(shape)
    if module.endswith("norm"):
        return torch.ones(shape)
    if module == "scalar":
        std = (shape[-1] + 1) ** -0.5
    elif module == "embed":
        std = _embedding_std(config)
    elif module in ("head", "positions", "token_types"):
        std = SMALL_STD
    elif module.endswith(("attention.out", "cross.out", "mlp.down")):
        std = (shape[-1] * 2 * max(config.n_layers, config.n_encoder_layers)) ** -0.5
    else:
        std = shape[-1] ** -0.5
    value = torch.randn(shape, generator=generator_for(name, seed)) * std
    if module.endswith(("attention.qkv", "cross.q")) and config.attention_scale is not None:
        value[: config.n_heads * config.head_dim] *= config.head_dim**-0.5 / config.attention_scale
    return value


def _embedding_std(config: ModelConfig) -> float:
    if config.tie_embeddings and not config.scale_embeddings and not config.scale_logits:
        return SMALL_STD
    return 1 / config.embedding_scale


def generator_for(name: str, seed: int) -> torch.Generator:
    """A CPU generator keyed by (seed, name)."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
