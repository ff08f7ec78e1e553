"""The encoder-decoder (Vaswani et al., 2017, arXiv:1706.03762; T5: Raffel et al., 2020, arXiv:1910.10683).

inputs  ──► embed ──► encoder block × n_encoder_layers ──► norm ──► memory
                                                                       │
tokens  ──► embed ──► decoder block × n_layers, each attending to it ──┘──► norm ──► head ──► logits
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.attention import Attend, KeysValues, Pattern, Scoring, bidirectional, causal, masked
from llm.models.config import ModelConfig
from llm.models.decoder import Readout
from llm.models.documents import positions_in, same_document, seeing_own_document
from llm.models.initial import init_weights
from llm.models.stack import Stack, attention_scale, with_sinusoids


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

    def encode(self, inputs: Tensor, valid: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """inputs (batch, keys) int64 -> memory (batch, keys, d_model).

        valid (batch, keys) bool: False for padding, which nobody sees; None if there is none. Or (batch,
        keys, keys): whether the token of a row sees that of a column. positions as in `decode`.
        """
        return self._run(self.encoder, inputs, positions, _seeing(valid))

    def decode(
        self,
        tokens: Tensor,
        memory: Tensor | Sequence[KeysValues],
        valid: Tensor | None = None,
        positions: Tensor | None = None,
        pattern: Pattern = causal,
    ) -> Tensor:
        """tokens (batch, seq) int64, memory as of `encode` -> hidden states (batch, seq, d_model).

        valid: which of the memory is seen, by all tokens (batch, keys) or by each (batch, seq, keys).

        positions (batch or 1, seq) default to 0 … seq − 1. In place of memory, what `keys_values` made of it.
        """
        scoring = Scoring(attention_scale(self.config), tokens.shape[1], tokens.device)
        return self._run(self.decoder, tokens, positions, pattern, memory, _seeing(valid)(scoring))

    def keys_values(self, memory: Tensor) -> list[KeysValues]:
        """What each block of the decoder looks up in the memory."""
        return [block.cross.keys_values(memory) for block in self.decoder.blocks]

    def forward(
        self,
        inputs: Tensor,
        tokens: Tensor,
        valid: Tensor | None = None,
        readout: Readout = F.linear,
        documents: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """inputs (batch, keys) and tokens (batch, seq) int64 -> logits (batch, seq, padded_vocab_size).

        Logits at position t say what comes after tokens[:, t]. `readout` as in `Decoder.forward`.

        documents, in place of valid: the numbers of those that inputs and tokens are of, like them
        (`documents_of_pair`). Each sees itself alone, and its positions begin at 0.
        """
        if documents is None:
            hidden = self.decode(tokens, self.encode(inputs, valid), valid)
        else:
            read, written = documents
            memory = self.encode(inputs, same_document(read, read), positions_in(read))
            seen = same_document(written, read)
            hidden = self.decode(tokens, memory, seen, positions_in(written), seeing_own_document(written))
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


def _seeing(valid: Tensor | None) -> Pattern:
    if valid is None:
        return bidirectional
    return masked(valid.unsqueeze(1) if valid.dim() == 3 else valid[:, None, None, :])
