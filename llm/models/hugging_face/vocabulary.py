"""Another numbering of the vocabulary: the rows of embedding and head move to their new ids."""

import torch
from torch import Tensor

from llm.models.config import ModelConfig

_BY_TOKEN = ("embed.weight", "head.weight", "head_bias")


def with_rows(
    state: dict[str, Tensor], config: ModelConfig, rows: list[int | None]
) -> tuple[dict[str, Tensor], ModelConfig]:
    """The model whose token i was token rows[i]. A new token (None) is the mean of all old ones.

    The mean keeps a new token from being likelier than those that the model knows (Hewitt, 2021,
    "Initializing New Word Embeddings for Pretrained Language Models").

    Raises ValueError if a row is beyond the vocabulary.
    """
    last = max((row for row in rows if row is not None), default=-1)
    if last >= config.vocab_size:
        raise ValueError(f"the tokenizer has an id {last}, the model {config.vocab_size} ids")
    renumbered = config.model_copy(update={"vocab_size": len(rows)})
    moved = {
        name: _moved(state[name][: config.vocab_size], rows, renumbered.padded_vocab_size)
        for name in _BY_TOKEN
        if name in state
    }
    return state | moved, renumbered


def _moved(old: Tensor, rows: list[int | None], padded: int) -> Tensor:
    new = old.new_zeros(padded, *old.shape[1:])
    known = torch.tensor([row is not None for row in rows])
    new[: len(rows)][known] = old[torch.tensor([row for row in rows if row is not None])]
    new[: len(rows)][~known] = old.mean(dim=0)
    return new
