"""An encoder that says which token is hidden (BERT: Devlin et al., 2019, arXiv:1810.04805).

tokens ──► embed ──► norm ──► block × n_layers ──► transform ──► norm ──► head ──► logits
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.attention import Pattern
from llm.models.config import ModelConfig
from llm.models.decoder import Readout, Trunk


class MaskedLM(Trunk):
    """BERT's masked-LM head on an encoder's trunk: logits = norm(gelu(transform(h))) Eᵀ + bias.

    There is neither a pooler nor a head for the next sentence: later work found no use for them (Liu et al.,
    2019, arXiv:1907.11692).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.transform = nn.Linear(config.d_model, config.d_model)
        self.transform_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.head_bias = nn.Parameter(torch.empty(config.padded_vocab_size))

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        pattern: Pattern | None = None,
        token_types: Tensor | None = None,
        readout: Readout = F.linear,
    ) -> Tensor:
        """tokens (batch, seq) int64 -> logits (batch, seq, padded_vocab_size) of the token at each place.

        `readout(hidden, head_weight, head_bias)` as in `Decoder.forward`.
        """
        return self.read(self.hidden(tokens, positions, pattern, token_types), readout)

    def read(self, hidden: Tensor, readout: Readout) -> Any:
        """hidden (batch, seq, d_model) -> what `readout` makes of it and the head."""
        hidden = self.transform_norm(F.gelu(self.transform(hidden)))
        return readout(hidden, self.embed.weight, self.head_bias)
