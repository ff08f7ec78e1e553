"""Which part of each row a rank trains on."""

from typing import Any

from torch import Tensor

from llm.models.documents import positions_in, same_document, seeing_themselves, segments_of
from llm.models.encoder_decoder import Sight, seeing_own_pair
from llm.training.parallel.context import own_places, seeing_what_was_read, seeing_whole_rows
from llm.training.parallel.ranks import Ranks
from llm.training.parallel.tensor import own_rows


def own_part(
    tokens: Tensor, targets: Tensor, opening_id: int | None, ranks: Ranks, both_ways: bool = False
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Of whole rows, tokens and targets (batch, seq), the same on all ranks that share them: the tokens that
    a `Trunk` takes on this rank, the targets of the hidden states that it makes of them, and what else it
    takes.

    opening_id: as for `seeing_themselves`. both_ways: whether tokens see what comes after them.
    """
    inputs: dict[str, Any] = {}
    if ranks.layout.context > 1:
        places = own_places(tokens.shape[1], ranks.layout.context, ranks.place.context, tokens.device)
        segments = None if opening_id is None else segments_of(tokens, opening_id)
        pattern = seeing_whole_rows(places, ranks.context, segments, both_ways=both_ways)
        inputs = {"positions": _positions(places, segments), "pattern": pattern}
        tokens, targets = tokens[:, places], targets[:, places]
    elif opening_id is not None:
        inputs = seeing_themselves(tokens, opening_id)
    if ranks.layout.tensor > 1:
        targets = own_rows(targets, ranks.tensor)
    return tokens, targets, inputs


def own_part_of_pair(
    inputs: Tensor, tokens: Tensor, targets: Tensor, documents: tuple[Tensor, Tensor] | None, ranks: Ranks
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """The same for an `EncoderDecoder`, of inputs (batch, keys), tokens and targets (batch, seq).

    documents: as of `documents_of_pair`, if they are not to see each other.
    """
    sight = None if documents is None else seeing_own_pair(*documents)
    if ranks.layout.context > 1:
        group, parts, rank = ranks.context, ranks.layout.context, ranks.place.context
        read, written = (own_places(each.shape[1], parts, rank, each.device) for each in (inputs, tokens))
        of_read, of_written = documents or (None, None)
        seen = None if of_read is None or of_written is None else same_document(of_written, of_read)
        sight = Sight(
            seeing_whole_rows(read, group, of_read, both_ways=True),
            seeing_whole_rows(written, group, of_written),
            seeing_what_was_read(seen, written, read, group),
            _positions(read, of_read),
            _positions(written, of_written),
        )
        inputs, tokens, targets = inputs[:, read], tokens[:, written], targets[:, written]
    if ranks.layout.tensor > 1:
        targets = own_rows(targets, ranks.tensor)
    return inputs, tokens, targets, {"sight": sight}


def _positions(places: Tensor, segments: Tensor | None) -> Tensor:
    """(batch or 1, own): of the tokens at `places`, within their documents if rows have several."""
    return places.unsqueeze(0) if segments is None else positions_in(segments)[:, places]
