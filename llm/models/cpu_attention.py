"""Attention on a CPU that multiplies bf16, where rows are short: torch's kernel forward, its fp32 kernel
backward.

    P = exp(scale · q kᵀ + mask − log Z)      dv = Pᵀ do      ds = P ∘ (do vᵀ − Σ_d do ∘ out)
    dq = scale · ds k                         dk = scale · dsᵀ q      (Dao et al., 2022, arXiv:2205.14135)

torch's backward kernel for bf16 makes many small products, and beginning one costs more than the product.
The one for fp32 does not, and rounds neither P nor ds. On two cores, for equally many scores, conversions
included:

    head_dim    tokens of a row    bf16      fp32
          32                128    252 ms     70
          32                512     53        45
          32              2,048     22        24
          64                128    277       147
          64                256     93        96
          64                512     63        80
"""

from typing import Any

import torch
from torch import Tensor

_FP32_IS_FASTER = 1 << 14
"""Up to so many elements of a head's queries."""


def backward_is_slow(q: Tensor) -> bool:
    """Whether torch's own backward pass takes longer than `Fp32Backward`'s for q (…, seq, head_dim)."""
    short = q.shape[-2] * q.shape[-1] <= _FP32_IS_FASTER
    return short and q.device.type == "cpu" and q.dtype == torch.bfloat16


class Fp32Backward(torch.autograd.Function):
    """softmax(scale · q kᵀ + mask) v."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float
    ) -> Tensor:
        """q (batch, n_heads, seq, head_dim), k and v (batch, n_kv_heads, keys, head_dim), bf16 -> like q.

        mask (batch or 1, n_heads or 1, seq or 1, keys), bf16, is added to the scores and has no gradient.
        """
        out, log_normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(q, k, v, mask, out, log_normaliser)
        ctx.is_causal, ctx.scale = is_causal, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, mask, out, log_normaliser = ctx.saved_tensors
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(each.float() for each in (grad, q, k, v, out)),
            log_normaliser,
            0.0,
            ctx.is_causal,
            attn_mask=None if mask is None else mask.float(),
            scale=ctx.scale,
        )
        return *(each.to(q.dtype) for each in grads), None, None, None
