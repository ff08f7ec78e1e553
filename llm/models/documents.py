"""Rows that hold several documents, each of which sees itself alone.

A token that stands between documents opens the next one: <eos> in a stream of text, <bos> in packed
conversations. So the first word of a document is predicted from that token and nothing else, as it is when
a model is asked to begin. Positions begin anew with each document.

An encoder-decoder's row is two: what is read, where <eos> closes a document, and what is written, where the
token that the decoder starts from opens one. The n-th of the one belongs to the n-th of the other.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.models.attention import Attend, Pattern, Scoring, looking_back, masked


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
    return {"positions": positions_in(segments), "pattern": seeing_own_document(segments)}


def seeing_own_document(segments: Tensor) -> Pattern:
    """Causal attention within each document of a row: a query at t sees a key at u where

    u ≤ t, segments[t] = segments[u], and u is no further back than the model's window
    """
    same = same_document(segments, segments).unsqueeze(1)

    def pattern(scoring: Scoring) -> Attend:
        return masked(same & looking_back(segments.shape[1], scoring.window, segments.device))(scoring)

    return pattern


def documents_of_pair(
    inputs: Tensor, tokens: Tensor, closing_id: int, opening_id: int
) -> tuple[Tensor, Tensor]:
    """inputs (batch, keys) and tokens (batch, seq), int64 -> for each the number of its document, from 1.

    Padding is a document of its own in inputs; in tokens, where it must be no `opening_id`, it belongs to the
    last one, which does not see it. So each token of a document that was opened sees something.
    """
    closed = (inputs == closing_id).long()
    return closed.cumsum(1) - closed + 1, segments_of(tokens, opening_id)


def same_document(queries: Tensor, keys: Tensor) -> Tensor:
    """(batch, q) and (batch, k), numbers of documents -> (batch, q, k) bool: whether they are the same."""
    return queries.unsqueeze(2) == keys.unsqueeze(1)
