"""Which part of each row a rank trains on."""

from typing import Any

from torch import Tensor

from llm.models.documents import positions_in, seeing_themselves, segments_of
from llm.training.parallel.context import own_places, seeing_whole_rows
from llm.training.parallel.ranks import Ranks
from llm.training.parallel.tensor import own_rows


def own_part(
    tokens: Tensor, targets: Tensor, opening_id: int | None, ranks: Ranks
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Of whole rows, tokens and targets (batch, seq), the same on all ranks that share them: the tokens that
    a `Trunk` takes on this rank, the targets of the hidden states that it makes of them, and what else it
    takes.

    opening_id: as for `seeing_themselves`.
    """
    inputs: dict[str, Any] = {}
    if ranks.layout.context > 1:
        places = own_places(tokens.shape[1], ranks.layout.context, ranks.place.context, tokens.device)
        segments = None if opening_id is None else segments_of(tokens, opening_id)
        positions = places.unsqueeze(0) if segments is None else positions_in(segments)[:, places]
        inputs = {"positions": positions, "pattern": seeing_whole_rows(places, ranks.context, segments)}
        tokens, targets = tokens[:, places], targets[:, places]
    elif opening_id is not None:
        inputs = seeing_themselves(tokens, opening_id)
    if ranks.layout.tensor > 1:
        targets = own_rows(targets, ranks.tensor)
    return tokens, targets, inputs
