"""Answers of an encoder-decoder: inputs are read once, then a token is written at a time.

What the decoder looks up in the encoder's memory is projected once, and its own keys and values are kept, so
that a token costs one pass of the decoder over one position.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llm.models.attention import Attend, Pattern, Scoring, at_distances
from llm.models.config import ModelConfig
from llm.models.encoder_decoder import EncoderDecoder


@torch.inference_mode()
def answer(
    model: EncoderDecoder,
    inputs: Tensor,
    valid: Tensor | None = None,
    *,
    start_id: int,
    stop_id: int,
    max_tokens: int,
) -> list[list[int]]:
    """The greedy answer to each row of inputs (batch, keys) int64, without `start_id` and `stop_id`.

    valid (batch, keys) bool: False for padding. An answer ends before `stop_id`, or after `max_tokens`. The
    tokens are those of a full recomputation, wherever the two best logits differ by more than rounding.

    Raises:
        ValueError: `max_tokens` is beyond what the model was made for.
    """
    config = model.config
    if max_tokens > config.max_seq_len:
        raise ValueError(f"max_tokens={max_tokens} is beyond the model's max_seq_len={config.max_seq_len}")
    memory = model.encode(inputs, valid)
    looked_up = model.keys_values(memory)
    cache = _OwnTokens(config, len(inputs), max_tokens, memory)
    token = torch.full((len(inputs), 1), start_id, device=inputs.device)
    written: list[Tensor] = []
    running = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
    while len(written) < max_tokens and running.any():
        position = torch.tensor([[len(written)]], device=inputs.device)
        hidden = model.decode(token, looked_up, valid, position, cache.at(len(written)))
        logits = F.linear(hidden[:, -1] * config.logit_scale, model.head_weight[: config.vocab_size])
        token = logits.argmax(-1, keepdim=True)
        written.append(token)
        running &= token[:, 0] != stop_id
    rows = torch.cat(written, dim=1).tolist() if written else [[] for _ in inputs]
    return [row[: row.index(stop_id)] if stop_id in row else row for row in rows]


def answer_all(
    model: EncoderDecoder,
    sources: Sequence[Sequence[int]],
    *,
    batch_size: int,
    start_id: int,
    pad_id: int,
    stop_id: int,
    max_tokens: int,
) -> list[list[int]]:
    """`answer` to each source, in their order; those of about one length share a batch."""
    device = model.head_weight.device
    by_length = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    answers: dict[int, list[int]] = {}
    for start in range(0, len(by_length), batch_size):
        numbers = by_length[start : start + batch_size]
        rows = [torch.tensor(sources[number]) for number in numbers]
        inputs = pad_sequence(rows, batch_first=True, padding_value=pad_id).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        valid = torch.arange(inputs.shape[1], device=device) < lengths.unsqueeze(1)
        written = answer(model, inputs, valid, start_id=start_id, stop_id=stop_id, max_tokens=max_tokens)
        answers |= dict(zip(numbers, written, strict=True))
    return [answers[number] for number in range(len(sources))]


class _OwnTokens:
    """Keys and values of what was written: (n_layers, batch, n_kv_heads, max_tokens, head_dim)."""

    def __init__(self, config: ModelConfig, batch: int, max_tokens: int, like: Tensor) -> None:
        shape = (config.n_layers, batch, config.n_kv_heads, max_tokens, config.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)

    def at(self, place: int) -> Pattern:
        """The token at a place sees itself and those before it."""

        def pattern(scoring: Scoring) -> Attend:
            first = 0 if scoring.window is None else max(0, place + 1 - scoring.window)
            seen = slice(first, place + 1)
            added: Tensor | None = None
            if scoring.bias is not None:
                places = torch.arange(place + 1, device=scoring.device)
                added = at_distances(scoring.bias(place + 1), places[-1:], places[seen])

            def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                self.keys[layer, :, :, place] = k[:, 0]
                self.values[layer, :, :, place] = v[:, 0]
                return F.scaled_dot_product_attention(
                    q.transpose(1, 2),
                    self.keys[layer, :, :, seen],
                    self.values[layer, :, :, seen],
                    attn_mask=None if added is None else added.to(q.dtype),
                    scale=scoring.scale,
                    enable_gqa=q.shape[2] != k.shape[2],
                ).transpose(1, 2)

            return attend

        return pattern
