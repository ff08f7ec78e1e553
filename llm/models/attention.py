"""Scaled dot-product attention, and who may see whom.

    attention(q, k, v) = softmax(scale · q kᵀ + bias + mask) v        (Vaswani et al., 2017, arXiv:1706.03762)

`scale` and `bias` are the model's (`Scoring`). The mask is the batch's: a `Pattern` is given the model's
scoring once in every forward pass and returns what each layer then calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.config import ModelConfig
from llm.models.cpu_attention import Fp32Backward, backward_is_slow
from llm.models.positions.rope import Rotation, rotate


@dataclass(frozen=True)
class Scoring:
    """What a model makes of q kᵀ, whatever the mask."""

    scale: float
    seq_len: int
    """Tokens of a row,"""
    device: torch.device
    """and where they are."""
    window: int | None = None
    """Tokens that a token sees when it looks back, itself among them; None for all."""
    bias: Callable[[int], Tensor] | None = None
    """n -> (n_heads, 2n − 1): what is added at each distance (key's place − query's place), from −(n − 1) to
    n − 1.
    """


class Attend(Protocol):
    """How the queries of a layer meet keys and values."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (batch, seq, n_heads, head_dim), k and v (batch, keys, n_kv_heads, head_dim) -> like q."""
        ...


Pattern = Callable[[Scoring], Attend]
"""Who sees whom. The engine has one that reads and writes its KV cache."""


KeysValues = tuple[Tensor, Tensor]
"""Both (batch, keys, n_kv_heads, head_dim)."""


def causal(scoring: Scoring) -> Attend:
    """Every token sees itself and those before it.

    Right padding needs no mask of its own: no earlier position sees a later one.
    """
    if scoring.bias is None and (scoring.window is None or scoring.window >= scoring.seq_len):
        return _attend(scoring, mask=None, is_causal=True)
    return masked(looking_back(scoring.seq_len, scoring.window, scoring.device))(scoring)


def bidirectional(scoring: Scoring) -> Attend:
    """Every token sees all: an encoder's own, and a decoder's of the encoder."""
    mask = None if scoring.bias is None else _by_place(scoring.bias(scoring.seq_len), scoring.seq_len)
    return _attend(scoring, mask, is_causal=False)


def masked(visible: Tensor) -> Pattern:
    """visible (batch or 1, 1, queries or 1, keys) bool: whether a query may see a key."""

    def pattern(scoring: Scoring) -> Attend:
        if scoring.bias is None:
            return _attend(scoring, visible, is_causal=False)
        bias = _by_place(scoring.bias(scoring.seq_len), scoring.seq_len)
        return _attend(scoring, bias.masked_fill(~visible, -torch.inf), is_causal=False)

    return pattern


def adding(bias: Tensor) -> Pattern:
    """bias (batch or 1, n_heads or 1, queries or 1, keys): what is added to the scores, −∞ where nothing is
    seen, in place of the model's own.
    """
    return lambda scoring: _attend(scoring, bias, is_causal=False)


def looking_back(seq_len: int, window: int | None, device: torch.device | None = None) -> Tensor:
    """(1, 1, seq_len, seq_len) bool: a query sees itself and `window` − 1 keys before it; None for all."""
    ones = torch.ones(1, 1, seq_len, seq_len, dtype=torch.bool, device=device).tril()
    return ones if window is None else ones.triu(1 - window)


def _by_place(bias: Tensor, seq_len: int) -> Tensor:
    """(1, n_heads, seq_len, seq_len): the bias of each distance where query t meets key u, u − t apart."""
    places = torch.arange(seq_len, device=bias.device)
    return at_distances(bias, places, places).unsqueeze(0)


def at_distances(bias: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """bias (n_heads, 2n − 1) by distance; places of queries (q,) and keys (k,) below n -> (n_heads, q, k)."""
    return bias[:, keys - queries.unsqueeze(1) + bias.shape[1] // 2]


def _attend(scoring: Scoring, mask: Tensor | None, is_causal: bool) -> Attend:
    """By the fused kernels of torch. The mask is a bool, True where seen, or what is added to the scores."""
    scale = scoring.scale

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[2] != k.shape[2]
        added = mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        learned = mask is not None and mask.requires_grad
        if q.requires_grad and backward_is_slow(q) and not learned:
            return Fp32Backward.apply(q, k, v, _to_add(added, q), is_causal, scale).transpose(1, 2)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=added, is_causal=is_causal, scale=scale, enable_gqa=grouped
        ).transpose(1, 2)

    return attend


def _to_add(mask: Tensor | None, scores: Tensor) -> Tensor | None:
    """What to add to scores, in their dtype: where a mask of bool is False, −∞."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)


class Attention(nn.Module):
    """Self-attention with grouped-query heads (Ainslie et al., 2023, arXiv:2305.13245).

    Project to q, k and v in one matmul, normalise and rotate q and k if the model does, attend, project back.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        width = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        self.qkv = nn.Linear(config.d_model, width, bias=config.bias)
        self.out = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=config.bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        """x (batch, seq, d_model) -> the same shape."""
        heads = self.qkv(x).unflatten(-1, (self.n_heads + 2 * self.n_kv_heads, self.head_dim))
        qk, v = heads.split((self.n_heads + self.n_kv_heads, self.n_kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((self.n_heads, self.n_kv_heads), dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split((self.n_heads, self.n_kv_heads), dim=2)
        return self.out(attend(self.layer, q, k, v).flatten(2))


class CrossAttention(nn.Module):
    """A decoder's attention to what the encoder has read."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.q = nn.Linear(config.d_model, config.n_heads * config.head_dim, bias=config.bias)
        self.kv = nn.Linear(config.d_model, 2 * config.n_kv_heads * config.head_dim, bias=config.bias)
        self.out = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=config.bias)

    def keys_values(self, memory: Tensor) -> KeysValues:
        """What is looked up in memory (batch, keys, d_model); the same for every token that looks."""
        k, v = self.kv(memory).unflatten(-1, (2 * self.n_kv_heads, self.head_dim)).chunk(2, dim=2)
        return k, v

    def forward(self, x: Tensor, memory: Tensor | KeysValues, attend: Attend) -> Tensor:
        """x (batch, seq, d_model), memory (batch, keys, d_model) or what `keys_values` made of it -> like
        x.
        """
        q = self.q(x).unflatten(-1, (self.n_heads, self.head_dim))
        k, v = self.keys_values(memory) if isinstance(memory, Tensor) else memory
        return self.out(attend(self.layer, q, k, v).flatten(2))


def split_qkv(qkv: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of q, k and v inside a fused `qkv` weight or bias, as views."""
    kv = config.n_kv_heads * config.head_dim
    q, k, v = torch.split(qkv, (config.n_heads * config.head_dim, kv, kv))
    return q, k, v
