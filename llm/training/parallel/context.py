"""Context parallelism: a row's tokens divided among ranks, for rows too long for one.

Rank r of C takes pieces r and 2C − 1 − r of the 2C that a row is cut into, so that all look back about as
far:

    tokens   0 │ 1 │ 2 │ 3        rank 0: pieces 0 and 3, rank 1: pieces 1 and 2

Every token is by itself but in attention. There the queries are a rank's own, and the keys and values of the
whole row are gathered, layer by layer; their gradients are summed and scattered on the way back. Gathering
all at once moves as many bytes as a ring would (Liu et al., 2023, arXiv:2310.01889), and Llama 3 was trained
so (Grattafiori et al., 2024, arXiv:2407.21783, § 3.3.2), since with grouped-query heads keys and values are
the small part. Each rank looks at all keys under a mask, whatever the mask is.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_single_autograd

from llm.models.attention import Attend, Pattern, Scoring, adding, at_distances, bidirectional, masked


def own_places(seq_len: int, ranks: int, rank: int, device: torch.device | None = None) -> Tensor:
    """(seq_len / ranks,) int64: the places of a row that are `rank`'s. 2 · ranks divides seq_len."""
    pieces = torch.arange(seq_len, device=device).chunk(2 * ranks)
    return torch.cat((pieces[rank], pieces[2 * ranks - 1 - rank]))


def seeing_whole_rows(
    places: Tensor, group: dist.ProcessGroup, segments: Tensor | None = None, *, both_ways: bool = False
) -> Pattern:
    """Attention of the tokens at `places` (own,) to all of their rows: to what comes before them, as far back
    as the model's window, or both ways.

    segments (batch, seq): the document of each token of the whole row, if documents do not see each other.
    """
    gathered = _places_of_all(places, group)
    distance = places.unsqueeze(1) - gathered
    visible = (torch.ones_like(distance, dtype=torch.bool) if both_ways else distance >= 0)[None, None]
    if segments is not None:
        visible = visible & (segments[:, None, places, None] == segments[:, None, None, gathered])

    def pattern(scoring: Scoring) -> Attend:
        if both_ways and segments is None and scoring.bias is None:
            return _of_whole_rows(bidirectional(scoring), group)
        near = visible if both_ways or scoring.window is None else visible & (distance < scoring.window)
        if scoring.bias is not None:
            bias = at_distances(scoring.bias(len(gathered)), places, gathered).unsqueeze(0)
            return _of_whole_rows(adding(bias.masked_fill(~near, -torch.inf))(scoring), group)
        return _of_whole_rows(masked(near)(scoring), group)

    return pattern


def seeing_what_was_read(
    visible: Tensor | None, places: Tensor, read: Tensor, group: dist.ProcessGroup
) -> Pattern:
    """Attention of the tokens at `places` (own,) to all of what an encoder has read, of which this rank has
    the tokens at `read` (own,).

    visible (batch, seq, keys) bool: whether a token of the whole row sees one that was read; None for all.
    """
    if visible is not None:
        visible = visible[:, places][:, :, _places_of_all(read, group)].unsqueeze(1)

    def pattern(scoring: Scoring) -> Attend:
        attend = bidirectional if visible is None else masked(visible)
        return _of_whole_rows(attend(scoring), group)

    return pattern


def _places_of_all(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(seq,): the places of a row in the order in which ranks gather it."""
    ranks = dist.get_world_size(group)
    return torch.cat([own_places(len(own) * ranks, ranks, each, own.device) for each in range(ranks)])


def _of_whole_rows(attend: Attend, group: dist.ProcessGroup) -> Attend:
    """Of each rank's keys and values to those of all."""

    def attend_to_whole_rows(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = torch.cat((k, v), dim=2)
        keys, values = all_gather_single_autograd(own, gather_dim=1, group=group).chunk(2, dim=2)
        return attend(layer, q, keys, values)

    return attend_to_whole_rows
