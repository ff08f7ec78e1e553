"""The trunk of a model with one stack of blocks, and the causal language model on top of it.

tokens ──► embed ──► block × n_layers ──► norm ──► head ──► logits
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.attention import Pattern, bidirectional, causal
from llm.models.config import ModelConfig
from llm.models.experts import with_router_losses
from llm.models.initial import init_weights
from llm.models.stack import Stack, with_sinusoids

Readout = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(hidden (batch, seq, d_model), head weight (padded_vocab_size, d_model), head bias or None) -> what the
forward pass returns.
"""


class Trunk(Stack):
    """Embedding, blocks and final norm: a decoder's, which looks back, or an encoder's, which looks both
    ways.
    """

    def __init__(self, config: ModelConfig) -> None:
        both_ways = config.family == "encoder"
        super().__init__(config, config.n_layers, cross=False, both_ways=both_ways)
        self.pattern: Pattern = bidirectional if both_ways else causal
        self.embed = nn.Embedding(config.padded_vocab_size, config.d_model)
        learned = config.position == "learned"
        self.positions = nn.Embedding(config.max_seq_len, config.d_model) if learned else None
        types = config.n_token_types
        self.token_types = nn.Embedding(types, config.d_model) if types else None
        self.embed_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps) if config.embedding_norm else None

    def init_weights(self, seed: int) -> None:
        """Fill every parameter in place: the same values on any device, rank or world size (`initial.py`)."""
        init_weights(self, seed)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        pattern: Pattern | None = None,
        token_types: Tensor | None = None,
        router_losses: list[Tensor] | None = None,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """tokens (batch, seq) int64 -> (batch, seq, d_model) after the final norm.

        positions (batch or 1, seq) default to 0 … seq − 1; `pattern` to the family's own over the batch;
        token_types (batch, seq) to 0. `router_losses` and `row_weights` as in `Stack.run`. Under FSDP call
        the module itself (`forward`), whose hooks gather the root's parameters.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        x = self.embed(tokens)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.positions is not None:
            x = x + self.positions(positions)
        if self.token_types is not None:
            x = x + self.token_types(torch.zeros_like(tokens) if token_types is None else token_types)
        x = with_sinusoids(x, positions, self.config)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        return self.run(
            x, positions, pattern or self.pattern, router_losses=router_losses, row_weights=row_weights
        )


class Decoder(Trunk):
    """A causal language model.

    Logits cover `padded_vocab_size` ids. Ids from `vocab_size` on are padding: cut them off
    (`logits[..., :vocab_size]`) wherever a probability must be comparable with the engine's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.head = (
            None if config.tie_embeddings else nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        )

    @property
    def head_weight(self) -> Tensor:
        """(padded_vocab_size, d_model): the embedding table itself when tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        pattern: Pattern | None = None,
        readout: Readout = F.linear,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """tokens (batch, seq) int64 -> logits (batch, seq, padded_vocab_size).

        `readout(hidden, head_weight, None)` replaces the plain matmul with something cheaper than all logits,
        such as a fused linear cross-entropy or the logits of a few rows. It runs inside forward, where FSDP
        has the head gathered.

        row_weights (batch,): with experts, each row's tokens in the summed loss that `readout` returns, whose
        gradient then has the router's losses in it (`experts.py`).
        """
        router_losses: list[Tensor] = []
        hidden = self.hidden(tokens, positions, pattern, router_losses=router_losses, row_weights=row_weights)
        result = self.read(hidden, readout)
        if row_weights is None or not router_losses:
            return result
        if isinstance(result, tuple):  # the loss, and what is told beside it
            return with_router_losses(result[0], router_losses, row_weights), *result[1:]
        return with_router_losses(result, router_losses, row_weights)

    def read(self, hidden: Tensor, readout: Readout) -> Any:
        """hidden (batch, seq, d_model) after the final norm -> what `readout` makes of it and the head."""
        if self.config.logit_scale != 1:
            hidden = hidden * self.config.logit_scale
        return readout(hidden, self.head_weight, None)
