"""The trunk of a decoder-only transformer, and the language model on top of it.

tokens ──► embed ──► block × n_layers ──► norm ──► head ──► logits
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.attention import Attend, causal_attention
from llm.models.config import ModelConfig
from llm.models.initial import init_weights
from llm.models.layers import Block
from llm.models.rope import rope_angles


class Trunk(nn.Module):
    """Embedding, blocks and final norm: what a language model and a scalar model have in common."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)

    def init_weights(self, seed: int) -> None:
        """Fill every parameter in place: the same values on any device, rank or world size (`initial.py`)."""
        init_weights(self, seed)

    def hidden(
        self, tokens: Tensor, positions: Tensor | None = None, attend: Attend = causal_attention
    ) -> Tensor:
        """tokens (batch, seq) int64 -> (batch, seq, d_model) after the final norm.

        positions (batch or 1, seq) default to 0 … seq − 1; `attend` to causal attention over the batch.
        Under FSDP call the module itself (`forward`), whose hooks gather the root's parameters.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        cos, sin = rope_angles(positions, self.config.head_dim, self.config.rope_theta)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, attend)
        return self.norm(x)


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
        attend: Attend = causal_attention,
        readout: Callable[[Tensor, Tensor], Tensor] = F.linear,
    ) -> Tensor:
        """tokens (batch, seq) int64 -> logits (batch, seq, padded_vocab_size).

        `readout(hidden, head_weight)` replaces the plain matmul with something cheaper than all logits,
        such as a fused linear cross-entropy or the logits of a few rows. It runs inside forward, where FSDP
        has the head gathered.
        """
        return readout(self.hidden(tokens, positions, attend), self.head_weight)
