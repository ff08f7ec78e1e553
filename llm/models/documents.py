"""Rows that hold several documents, each of which sees itself alone.

A token that stands between documents opens the next one: <eos> in a stream of text, <bos> in packed
conversations. So the first word of a document is predicted from that token and nothing else, as it is when
a model is asked to begin. Positions begin anew with each document.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.models.attention import Attend


def segments_of(tokens: Tensor, opening_id: int) -> Tensor:
    """tokens (batch, seq) int64 -> (batch, seq) int64: the number of the document that each token is of."""
    return (tokens == opening_id).cumsum(1)


def positions_in(segments: Tensor) -> Tensor:
    """segments (batch, seq) -> (batch, seq) int64: how many tokens of the same document stand before."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    opens = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
    return places - places.where(opens, 0).cummax(1).values


def seeing_themselves(tokens: Tensor, opening_id: int | None) -> dict[str, Any]:
    """What a `Trunk` takes besides tokens (batch, seq) so that each document of a row sees itself alone;
    nothing if there is no token that opens one.
    """
    if opening_id is None:
        return {}
    segments = segments_of(tokens, opening_id)
    return {"positions": positions_in(segments), "attend": document_attention(segments)}


def document_attention(segments: Tensor) -> Attend:
    """Causal attention within each document of a row.

    softmax(q kᵀ / √head_dim + mask) v,    mask[t, u] = 0 if u ≤ t and segments[t] = segments[u], else −∞
    """
    same = segments[:, None, :, None] == segments[:, None, None, :]
    mask = same.tril()

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[2] != k.shape[2]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped).transpose(1, 2)

    return attend
