"""Causal self-attention with grouped-query heads (Ainslie et al., 2023, arXiv:2305.13245)."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.config import ModelConfig
from llm.models.rope import rotate


class Attend(Protocol):
    """How queries meet keys and values: the engine passes one that reads and writes its KV cache."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (batch, seq, n_heads, head_dim), k and v (batch, seq, n_kv_heads, head_dim) -> like q."""
        ...


def causal_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √head_dim + causal mask) v over whole sequences, by the fused kernels of torch.

    Right padding needs no mask of its own: no earlier position sees a later one.
    """
    grouped = q.shape[2] != k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)


class Attention(nn.Module):
    """Project to q, k and v in one matmul, rotate q and k, attend, project back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = nn.Linear(
            config.d_model, (config.n_heads + 2 * config.n_kv_heads) * config.head_dim, bias=False
        )
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x (batch, seq, d_model) -> the same shape."""
        heads = self.qkv(x).unflatten(-1, (self.n_heads + 2 * self.n_kv_heads, self.head_dim))
        qk, v = heads.split((self.n_heads + self.n_kv_heads, self.n_kv_heads), dim=2)
        q, k = rotate(qk, cos, sin).split((self.n_heads, self.n_kv_heads), dim=2)
        return self.out(attend(self.layer, q, k, v).flatten(2))


def split_qkv(weight: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The q, k and v matrices inside a fused `qkv` weight, as views."""
    kv = config.n_kv_heads * config.head_dim
    q, k, v = torch.split(weight, (config.d_model, kv, kv))
    return q, k, v
