"""Low-rank adapters: small matrices that are trained beside frozen ones (Hu et al., 2021, arXiv:2106.09685).

    y = W x + (α / r) B A x        W (out, in) is frozen; A (r, in) and B (out, r) are trained

A begins at N(0, 1/√in) and B at 0: the first forward pass is the base model's, bit for bit. In the end
(α / r) B A is added to W, and what is left is a model like any other.

Each part of a fused matrix has a pair of its own: q, k and v of `attention.qkv`, k and v of `cross.kv`, gate
and up of `mlp.gate_up`. One pair for the whole would be fewer weights, but the parts would share their A, and
libraries that keep the parts apart, as Hugging Face's do, would have no name for it.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.config import ModelConfig
from llm.models.decoder import Trunk
from llm.models.encoder_decoder import EncoderDecoder
from llm.models.initial import generator_for
from llm.models.lora_config import LoraConfig

_ADAPTERS = ".adapters."


def adapted_parts(config: ModelConfig, lora: LoraConfig) -> dict[str, dict[str, int]]:
    """Matrices of a model that have adapters, by their names in it, and the rows of each of their parts.

    Raises:
        ValueError: the feed-forward layers are experts, which have none.
    """
    stacks = [("", config.n_layers, False)]
    if config.family == "encoder-decoder":
        stacks = [("encoder.", config.n_encoder_layers, False), ("decoder.", config.n_layers, True)]
    return {
        f"{stack}blocks.{layer}.{name}": parts
        for stack, layers, cross in stacks
        for layer in range(layers)
        for name, parts in _parts_of_block(config, lora, cross).items()
    }


def _parts_of_block(config: ModelConfig, lora: LoraConfig, cross: bool) -> dict[str, dict[str, int]]:
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    parts: dict[str, dict[str, int]] = {}
    if "attention" in lora.targets:
        parts |= {"attention.qkv": {"q": q, "k": kv, "v": kv}, "attention.out": {"o": config.d_model}}
        if cross:
            parts |= {"cross.q": {"q": q}, "cross.kv": {"k": kv, "v": kv}}
            parts["cross.out"] = {"o": config.d_model}
    if "mlp" in lora.targets:
        if config.n_experts:
            raise ValueError(f"targets={lora.targets}: experts have no adapters; use attention")
        if config.gated:
            parts["mlp.gate_up"] = {"gate": config.d_ff, "up": config.d_ff}
        else:
            parts["mlp.up"] = {"up": config.d_ff}
        parts["mlp.down"] = {"down": config.d_model}
    return parts


def adapter_count(config: ModelConfig, lora: LoraConfig) -> int:
    """Parameters of all adapters of a model: r · (inputs + outputs) each."""
    heads = config.n_heads * config.head_dim
    inputs = {"attention.out": heads, "cross.out": heads, "mlp.down": config.d_ff}
    return sum(
        lora.rank * (inputs.get(matrix.split(".", matrix.count(".") - 1)[-1], config.d_model) + rows)
        for matrix, parts in adapted_parts(config, lora).items()
        for rows in parts.values()
    )


class Adapter(nn.Module):
    """B A for one matrix W, or for one part of a fused one."""

    def __init__(self, base: Tensor, rows: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(base.new_empty(rank, base.shape[1]))
        self.b = nn.Parameter(base.new_empty(rows, rank))

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) -> (…, rows)."""
        return F.linear(F.linear(x, self.a), self.b)


class AdaptedLinear(nn.Linear):
    """A frozen linear layer and the adapters of its parts; its own parameters keep their names."""

    def __init__(self, base: nn.Linear, parts: dict[str, int], lora: LoraConfig) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = lora.scale
        self.adapters = nn.ModuleDict({part: Adapter(base.weight, n, lora.rank) for part, n in parts.items()})

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) -> (…, out)."""
        added = torch.cat([adapter(x) for adapter in self.adapters.values()], dim=-1)
        return super().forward(x) + self.scale * added


def add_adapters(model: Trunk | EncoderDecoder, lora: LoraConfig) -> None:
    """Freeze `model`, on the meta device or not, and give it adapters without values: `initial_adapters` has
    them. To be called before the model is sharded.
    """
    model.requires_grad_(False)
    for name, rows in adapted_parts(model.config, lora).items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, AdaptedLinear(linear, rows, lora))


def initial_adapters(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Values that the adapters of `model` start from, fp32 on the CPU, by parameter name.

    A pure function of (seed, name, shape), as in `initial.py`.
    """
    values: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if _ADAPTERS in name:
            values[name] = torch.zeros(parameter.shape)
            if name.endswith(".a"):
                values[name].normal_(0, parameter.shape[1] ** -0.5, generator=generator_for(name, seed))
    return values


def pairs(
    state: dict[str, Tensor], config: ModelConfig, lora: LoraConfig
) -> Iterator[tuple[str, dict[str, tuple[Tensor, Tensor]]]]:
    """(name of a matrix, (A, B) of each of its parts) of all that have adapters.

    state: the state dict of a model with adapters.
    """
    for matrix, parts in adapted_parts(config, lora).items():
        prefix = f"{matrix}{_ADAPTERS}"
        yield matrix, {part: (state[f"{prefix}{part}.a"], state[f"{prefix}{part}.b"]) for part in parts}


def merge_adapters(state: dict[str, Tensor], config: ModelConfig, lora: LoraConfig) -> dict[str, Tensor]:
    """The state dict of the model without adapters that computes the same: W + (α / r) B A.

    Of `state`, that of a model with adapters, the other tensors are taken over as they are.
    """
    merged = {name: tensor for name, tensor in state.items() if _ADAPTERS not in name}
    for matrix, parts in pairs(state, config, lora):
        name = f"{matrix}.weight"
        merged[name] = merged[name] + lora.scale * torch.cat([b @ a for a, b in parts.values()])
    return merged
