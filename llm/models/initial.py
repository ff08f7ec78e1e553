"""Initial weights as a pure function of (seed, parameter name, shape).

Guarantee: the same values whether the module was built directly, or on the meta device and made real by
`to_empty`, whole or sharded over any number of ranks; and adding a parameter changes no other.

Numbers are drawn in blocks of rows, each with a generator of its own: threads share a large matrix, and a
rank draws only its own rows where it holds whole ones, as under FSDP. Of a matrix that is divided in another
way, among tensor or expert ranks, it draws all.
"""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from llm.models.config import ModelConfig
from llm.models.fused import in_its_order, ranks_dividing

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SMALL_STD = 0.02
_BLOCK = 1 << 20
"""Numbers that are drawn with one generator."""


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Fill every parameter of `model` (which has `.config`) in place; a DTensor takes its own shard."""
    config: ModelConfig = model.config  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        if not hasattr(parameter, "placements"):
            parameter.copy_(initial_value(name, shape, config, seed))
            continue
        # Takes a second to import, which models that only generate need not wait for.
        from torch.distributed.tensor import distribute_tensor

        sharded = cast("DTensor", parameter)
        rows = _own_rows(sharded)
        if rows is not None:
            sharded.to_local().copy_(initial_value(name, shape, config, seed, rows))
            continue
        value = initial_value(name, shape, config, seed).to(parameter.device, parameter.dtype)
        value = in_its_order(value, name, parameter, config)
        parameter.copy_(distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None))


def _own_rows(parameter: "DTensor") -> range | None:
    """Which rows of the whole this rank holds, if it holds whole rows, one after the other."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements = [each for each in parameter.placements if not each.is_replicate()]
    # A matrix that tensor ranks divide may have its rows in another order (`fused.py`).
    if any(type(each) is not Shard or each.dim for each in placements) or len(placements) > 1:
        return None
    if ranks_dividing(parameter) > 1:
        return None
    local, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return range(offset[0], offset[0] + local[0])


def initial_value(
    name: str, shape: torch.Size, config: ModelConfig, seed: int, rows: range | None = None
) -> Tensor:
    """The fp32 CPU tensor that parameter `name` starts from, or some rows of it.

    weights of norms               1
    biases                         0
    scalar head                    N(0, 1/√(d_model + 1))
    embedding                      N(0, 1): the residual stream begins as large as what blocks add to it
    vocabulary head                N(0, 0.02), also of an embedding that is the head too
    positions, token types         N(0, 0.02)
    relative position bias         0: no distance is dearer than another
    matrices ending in a residual  N(0, 1/√(fan_in · 2 · n_layers))   (GPT-2: keeps the variance with depth)
      of an encoder-decoder        N(0, 1/√fan_in)                    (as T5's own)
    every other matrix             N(0, 1/√fan_in)                    (keeps the variance through the layer)

    Where the embedding is scaled on its way in, or the hidden states on their way out, the table is as much
    larger or smaller. Queries of a model that does not divide scores by √head_dim are as much smaller.

    Seen on 0.4M tokens of Python with the quickstart's model: an embedding of N(0, 1) beside a head of its
    own reaches 4.8 nats per token where one tied table of N(0, 0.02) is at 6.2. Encoder-decoders of 2 + 2
    layers that learn to reverse 12 tokens are after 400 steps at 2.30 nats as a T5, and at 0.10 as the first
    Transformer; with GPT-2's factor at 2.44 and 0.22 (means of two or three seeds).
    """
    rows = range(shape[0]) if rows is None else rows
    module, _, kind = name.rpartition(".")
    if kind in ("bias", "head_bias") or module.endswith("relative"):
        return torch.zeros(len(rows), *shape[1:])
    if module.endswith("norm"):
        return torch.ones(len(rows), *shape[1:])
    if module == "scalar":
        std = (shape[-1] + 1) ** -0.5
    elif module == "embed":
        std = _embedding_std(config)
    elif module in ("head", "positions", "token_types"):
        std = SMALL_STD
    elif module.endswith(("attention.out", "cross.out", "mlp.down")):
        depth = 1 if config.family == "encoder-decoder" else 2 * config.n_layers
        std = (shape[-1] * depth) ** -0.5
    else:
        std = shape[-1] ** -0.5
    value = _normal(name, shape, seed, rows, std)
    if module.endswith(("attention.qkv", "cross.q")) and config.attention_scale is not None:
        queries = max(config.n_heads * config.head_dim - rows.start, 0)
        value[:queries] *= config.head_dim**-0.5 / config.attention_scale
    return value


def _normal(name: str, shape: torch.Size, seed: int, rows: range, std: float) -> Tensor:
    """These rows of what has `shape` as a whole, of N(0, std): (len(rows), …)."""
    height = max(1, _BLOCK // math.prod(shape[1:]))
    values = torch.empty(len(rows), *shape[1:])

    def draw(block: int) -> None:
        first, last = block * height, min((block + 1) * height, shape[0])
        wanted = range(max(first, rows.start), min(last, rows.stop))
        into = values[wanted.start - rows.start : wanted.stop - rows.start]
        drawn = into if len(wanted) == last - first else torch.empty(last - first, *shape[1:])
        drawn.normal_(0, std, generator=generator_for(f"{name}[{block}]", seed))
        if drawn is not into:
            into.copy_(drawn[wanted.start - first : wanted.stop - first])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(draw, range(rows.start // height, -(-rows.stop // height))))
    return values


def _embedding_std(config: ModelConfig) -> float:
    if config.tie_embeddings and not config.scale_embeddings and not config.scale_logits:
        return SMALL_STD
    return 1 / config.embedding_scale


def generator_for(name: str, seed: int) -> torch.Generator:
    """A CPU generator keyed by (seed, name)."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
