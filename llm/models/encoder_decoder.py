"""The encoder-decoder (Vaswani et al., 2017, arXiv:1706.03762; T5: Raffel et al., 2020, arXiv:1910.10683).

inputs  ──► embed ──► encoder block × n_encoder_layers ──► norm ──► memory
                                                                       │
tokens  ──► embed ──► decoder block × n_layers, each attending to it ──┘──► norm ──► head ──► logits
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.attention import Attend, KeysValues, Pattern, Scoring, bidirectional, causal, masked
from llm.models.config import ModelConfig
from llm.models.decoder import Readout
from llm.models.documents import positions_in, same_document, seeing_own_document
from llm.models.initial import init_weights
from llm.models.stack import Stack, attention_scale, with_sinusoids


@dataclass(frozen=True)
class Sight:
    """Who sees whom in rows that are read and rows that are written, and where their tokens stand."""

    reading: Pattern = bidirectional
    writing: Pattern = causal
    across: Pattern = bidirectional
    """What each token that is written sees of what was read."""
    read_positions: Tensor | None = None
    """(batch or 1, keys),"""
    written_positions: Tensor | None = None
    """and (batch or 1, seq); by default from 0 up."""


class EncoderDecoder(nn.Module):
    """One embedding table for inputs, outputs and, where tied, the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.encoder = Stack(config, config.n_encoder_layers, cross=False, both_ways=True)
        self.decoder = Stack(config, config.n_layers, cross=True, both_ways=False)
        self.head = (
            None if config.tie_embeddings else nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        )

    @property
    def blocks(self) -> list[nn.Module]:
        """Of both stacks, in the order in which they run."""
        return [*self.encoder.blocks, *self.decoder.blocks]

    @property
    def head_weight(self) -> Tensor:
        """(padded_vocab_size, d_model): the embedding table itself when tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def init_weights(self, seed: int) -> None:
        """Fill every parameter in place: the same values on any device, rank or world size (`initial.py`)."""
        init_weights(self, seed)

    def encode(
        self,
        inputs: Tensor,
        valid: Tensor | None = None,
        positions: Tensor | None = None,
        pattern: Pattern | None = None,
    ) -> Tensor:
        """inputs (batch, keys) int64 -> memory (batch, keys, d_model).

        valid (batch, keys) bool: False for padding, which nobody sees; None if there is none. `pattern` in
        place of it; positions as in `decode`.
        """
        return self._run(self.encoder, inputs, positions, pattern or _seeing(valid))

    def decode(
        self,
        tokens: Tensor,
        memory: Tensor | Sequence[KeysValues],
        valid: Tensor | None = None,
        positions: Tensor | None = None,
        pattern: Pattern = causal,
        across: Pattern | None = None,
    ) -> Tensor:
        """tokens (batch, seq) int64, memory as of `encode` -> hidden states (batch, seq, d_model).

        valid (batch, keys) bool: which of the memory is seen; `across` in place of it.

        positions (batch or 1, seq) default to 0 … seq − 1. In place of memory, what `keys_values` made of it.
        """
        scoring = Scoring(attention_scale(self.config), tokens.shape[1], tokens.device)
        attend_memory = (across or _seeing(valid))(scoring)
        return self._run(self.decoder, tokens, positions, pattern, memory, attend_memory)

    def keys_values(self, memory: Tensor) -> list[KeysValues]:
        """What each block of the decoder looks up in the memory."""
        return [block.cross.keys_values(memory) for block in self.decoder.blocks]

    def forward(
        self,
        inputs: Tensor,
        tokens: Tensor,
        valid: Tensor | None = None,
        readout: Readout = F.linear,
        sight: Sight | None = None,
    ) -> Tensor:
        """inputs (batch, keys) and tokens (batch, seq) int64 -> logits (batch, seq, padded_vocab_size).

        Logits at position t say what comes after tokens[:, t]. `readout` as in `Decoder.forward`.

        sight, in place of valid: who sees whom, such as each document itself alone (`seeing_own_pair`).
        """
        sight = sight or Sight(_seeing(valid), causal, _seeing(valid))
        memory = self.encode(inputs, None, sight.read_positions, sight.reading)
        hidden = self.decode(tokens, memory, None, sight.written_positions, sight.writing, sight.across)
        return readout(hidden * self.config.logit_scale, self.head_weight, None)

    def _run(
        self,
        stack: Stack,
        tokens: Tensor,
        positions: Tensor | None,
        pattern: Pattern,
        memory: Tensor | Sequence[KeysValues] | None = None,
        attend_memory: Attend | None = None,
    ) -> Tensor:
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        x = self.embed(tokens) * self.config.embedding_scale
        return stack.run(with_sinusoids(x, positions, self.config), positions, pattern, memory, attend_memory)


def seeing_own_pair(read: Tensor, written: Tensor) -> Sight:
    """Each document sees itself alone, and its positions begin at 0.

    read (batch, keys), written (batch, seq): the number of the document that each token is of
    (`documents_of_pair`).
    """
    return Sight(
        masked(same_document(read, read).unsqueeze(1)),
        seeing_own_document(written),
        masked(same_document(written, read).unsqueeze(1)),
        positions_in(read),
        positions_in(written),
    )


def _seeing(valid: Tensor | None) -> Pattern:
    return bidirectional if valid is None else masked(valid[:, None, None, :])
