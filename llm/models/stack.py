"""Blocks one after the other: what an encoder and a decoder have in common."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from llm.models.attention import Attend, KeysValues, Pattern, Scoring
from llm.models.config import ModelConfig
from llm.models.layers import Block, make_norm
from llm.models.positions.alibi import alibi_bias
from llm.models.positions.relative import RelativeBias
from llm.models.positions.rope import rotation
from llm.models.positions.sinusoidal import sinusoids


class Stack(nn.Module):
    """Blocks, the norm at the end of a pre-norm stack, and the positions that belong to them.

    Args:
        cross: whether the blocks attend to an encoder too.
        both_ways: whether tokens see what comes after them.
    """

    def __init__(self, config: ModelConfig, n_layers: int, *, cross: bool, both_ways: bool) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer, cross) for layer in range(n_layers))
        self.relative = RelativeBias(config, both_ways) if config.position == "relative" else None
        self.norm = make_norm(config) if config.pre_norm else None
        self.own_heads = slice(None)
        """Those that `blocks` compute here; others are on other ranks, if heads are divided."""

    def run(
        self,
        x: Tensor,
        positions: Tensor,
        pattern: Pattern,
        memory: Tensor | Sequence[KeysValues] | None = None,
        attend_memory: Attend | None = None,
        router_losses: list[Tensor] | None = None,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Embeddings x (batch, seq, d_model), positions (batch or 1, seq) -> hidden states like x.

        memory: of an encoder, (batch, keys, d_model), or what each block's attention has made of it.
        router_losses: gets those of each block with experts, (batch,).
        row_weights: as in `Experts`.
        """
        rotated = rotation(positions, self.config) if self.config.position == "rope" else None
        attend = pattern(self.scoring(x.shape[1], x.device))
        for layer, block in enumerate(self.blocks):
            mine = memory if memory is None or isinstance(memory, Tensor) else memory[layer]
            x = block(x, rotated, attend, mine, attend_memory, row_weights)
            if self.config.n_experts:
                x, losses = x
                if router_losses is not None:
                    router_losses.append(losses)
        return x if self.norm is None else self.norm(x)

    def scoring(self, seq_len: int, device: torch.device) -> Scoring:
        """How this model scores, in rows of `seq_len` tokens."""
        config = self.config
        whole: Callable[[int], Tensor] | None = self.relative
        if config.position == "alibi":
            whole = partial(alibi_bias, config.n_heads, device=device)
        bias = whole and (lambda seq_len: whole(seq_len)[self.own_heads])
        return Scoring(attention_scale(config), seq_len, device, config.sliding_window, bias)


def attention_scale(config: ModelConfig) -> float:
    """What q kᵀ is multiplied by."""
    return config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale


def with_sinusoids(x: Tensor, positions: Tensor, config: ModelConfig) -> Tensor:
    """Embeddings x (batch, seq, d_model) with what sinusoidal positions add to them, if the model has any."""
    return x + sinusoids(positions, config.d_model).to(x.dtype) if config.position == "sinusoidal" else x
