"""Keys and values of every slot, preallocated, and the attention that reads and writes them.

Slots are whole rows rather than pages: decoding then attends over one dense view of the cache, without a
gather, which is what a CPU does fastest.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.engine.scheduler import Chunk
from llm.models.attention import Scoring, at_distances, looking_back
from llm.models.config import ModelConfig


class KVCache:
    """`keys` and `values`: (n_layers, slots, n_kv_heads, max_seq_len, head_dim)."""

    def __init__(
        self, config: ModelConfig, slots: int, max_seq_len: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layers, slots, config.n_kv_heads, max_seq_len, config.head_dim)
        # zeros, not empty: a masked position still meets its value with weight 0, and 0 · NaN is NaN
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for cache in (self.keys, self.values):
            cache[:, target, :, :length] = cache[:, source, :, :length]


@dataclass
class StepAttention:
    """Attention of one step: `decoding` tokens in slots 0, 1, …, then the prefill chunks, in one flat row.

    Called once per layer by the model; see `llm.models.attention.Attend`.
    """

    cache: KVCache
    positions: Tensor
    """(decoding,) where each decoding slot's new token goes."""
    chunks: list[Chunk]
    scoring: Scoring
    """How the model scores."""

    def __post_init__(self) -> None:
        device = self.positions.device
        self.decoding = len(self.positions)
        self.slots = torch.arange(self.decoding, device=device)
        if self.decoding:
            self.longest = int(self.positions.max()) + 1
            self.added = self._added(torch.arange(self.longest, device=device))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (1, tokens, n_heads, head_dim), k and v (1, tokens, n_kv_heads, head_dim) -> like q."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        split = (self.decoding, *(chunk.count for chunk in self.chunks))
        (q_now, *q_new), (k_now, *k_new), (v_now, *v_new) = (x[0].split(split) for x in (q, k, v))
        outputs = [self._decode(q_now, k_now, v_now, keys, values)] if self.decoding else []
        for i, chunk in enumerate(self.chunks):
            outputs.append(
                _prefill(
                    chunk, q_new[i], k_new[i], v_new[i], keys[chunk.slot], values[chunk.slot], self.scoring
                )
            )
        return torch.cat(outputs).unsqueeze(0)

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One new token per slot: the query heads that share a KV head act as its query positions."""
        keys[self.slots, :, self.positions] = k
        values[self.slots, :, self.positions] = v
        n, longest = self.decoding, self.longest
        grouped = q.reshape(n, k.shape[1], -1, q.shape[2])
        out = F.scaled_dot_product_attention(
            grouped,
            keys[:n, :, :longest],
            values[:n, :, :longest],
            attn_mask=self.added,
            scale=self.scoring.scale,
        )
        return out.reshape(q.shape)

    def _added(self, places: Tensor) -> Tensor:
        """What is added to the scores of each slot's token with the keys at `places` (keys,):

        (decoding, 1, 1, keys), or with a bias of the model's (decoding, n_kv_heads, n_heads / n_kv_heads,
        keys), for heads that share keys act as query positions.
        """
        dtype, back = self.cache.keys.dtype, self.positions.unsqueeze(1) - places
        seen = back >= 0
        if self.scoring.window is not None:
            seen &= back < self.scoring.window
        if self.scoring.bias is None:
            added = torch.zeros(seen.shape, device=places.device, dtype=dtype)[:, None, None, :]
        else:
            bias = at_distances(self.scoring.bias(self.longest), self.positions, places).to(dtype)
            added = bias.unflatten(0, (self.cache.keys.shape[2], -1)).permute(2, 0, 1, 3).contiguous()
        return added.masked_fill_(~seen[:, None, None, :], -torch.inf)


def _prefill(
    chunk: Chunk, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, scoring: Scoring
) -> Tensor:
    """Tokens start … start + count of one slot, keys and values (n_kv_heads, max_seq_len, head_dim)."""
    start, end = chunk.start, chunk.start + chunk.count
    keys[:, start:end] = k.transpose(0, 1)
    values[:, start:end] = v.transpose(0, 1)
    limited = scoring.window is not None and scoring.window < end
    mask: Tensor | None = None
    if start or limited or scoring.bias is not None:  # is_causal aligns the mask to the top left
        mask = looking_back(end, scoring.window, q.device)[0, 0, start:]
        if scoring.bias is not None:
            places = torch.arange(end, device=q.device)
            bias = at_distances(scoring.bias(end), places[start:], places).to(q.dtype)
            mask = bias.masked_fill(~mask, -torch.inf)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        keys[:, :end].unsqueeze(0),
        values[:, :end].unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scoring.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)
