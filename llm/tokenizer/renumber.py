"""Gives a SentencePiece model of somebody else our special ids, so that every stage can use it.

Ours come first, in the order of `special.py`; then all other pieces in their order. How text is cut does not
depend on ids, so that only the rows of the model's embedding and head have to move along.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.tokenizer.special import (
    BOS,
    BOS_ID,
    CHAT_SYMBOLS,
    EOS,
    EOS_ID,
    PAD,
    PAD_ID,
    SPECIAL_PIECES,
    UNK,
    UNK_ID,
)

_PIECE = proto.ModelProto.SentencePiece


@dataclass(frozen=True)
class Renumbered:
    """A tokenizer with our ids, and a model's pieces after them."""

    model: bytes
    """The content of `tokenizer.model`, or of a `tokenizer.json`."""
    rows: list[int | None]
    """By our id, the id that it had; None for a piece that is new."""


def renumber(
    model: bytes, added: dict[int, str] | None = None, model_pieces: Sequence[str] = ()
) -> Renumbered:
    """The same tokenizer with our special pieces in front.

    <unk>, <bos>, <eos> and <pad> take the place of those that the model says it has, and of pieces with their
    names; so do the chat symbols. Those that it lacks are new.

    Args:
        added: pieces by id that were added after the model was trained. They become control pieces.
        model_pieces: those of them that shall be the model's and not the tokenizer's (`ADDED_PIECES`); what
            is not among `added` is new.

    Raises ValueError if a piece of text is spelled like one of ours, or `model` is no SentencePiece model.
    """
    try:
        sentencepiece.SentencePieceProcessor(model_proto=model)
        spec = proto.ModelProto.FromString(model)
    except Exception as error:  # of several kinds, none of which says more
        raise ValueError(f"not a SentencePiece model: {error}") from None
    behind = {id: text for id, text in sorted((added or {}).items()) if id >= len(spec.pieces)}
    ids = {text: id for id, text in behind.items()}
    last = [ids.get(text) for text in model_pieces]
    if tuple(piece.piece for piece in spec.pieces[: len(SPECIAL_PIECES)]) == SPECIAL_PIECES:
        return Renumbered(model, [*range(len(spec.pieces)), *last])
    behind = {id: text for id, text in behind.items() if text not in model_pieces}
    had = _specials(spec, behind)
    rest = [id for id in range(len(spec.pieces)) if id not in had.values()]
    behind = {id: text for id, text in behind.items() if id not in had.values()}
    for text in [*(spec.pieces[id].piece for id in rest), *behind.values()]:
        if text in SPECIAL_PIECES:
            raise ValueError(f"it has a piece {text!r}, which means something else to us")

    pieces = [_special(text) for text in SPECIAL_PIECES]
    pieces += [spec.pieces[id] for id in rest]
    pieces += [_special(text) for text in behind.values()]
    made = proto.ModelProto()
    made.CopyFrom(spec)
    del made.pieces[:]
    made.pieces.extend(pieces)
    _describe(made.trainer_spec, len(pieces))
    first = [had.get(id) for id in range(len(SPECIAL_PIECES))]
    return Renumbered(made.SerializeToString(deterministic=True), [*first, *rest, *behind, *last])


def _specials(spec: proto.ModelProto, behind: dict[int, str]) -> dict[int, int]:
    """By our special id, the id of what means the same: what the model says of its own, else by its name."""
    trainer = spec.trainer_spec
    said = {UNK_ID: trainer.unk_id, BOS_ID: trainer.bos_id, EOS_ID: trainer.eos_id, PAD_ID: trainer.pad_id}
    found = {ours: theirs for ours, theirs in said.items() if 0 <= theirs < len(spec.pieces)}
    named = {piece.piece: id for id, piece in enumerate(spec.pieces) if piece.type != _PIECE.NORMAL}
    named |= {text: id for id, text in behind.items()}
    for ours, text in enumerate(SPECIAL_PIECES):
        if ours not in found and text in named and named[text] not in found.values():
            found[ours] = named[text]
    return found


def _special(text: str) -> proto.ModelProto.SentencePiece:
    kind = _PIECE.UNKNOWN if text == UNK else _PIECE.CONTROL
    return _PIECE(piece=text, score=0.0, type=kind)


def _describe(trainer: proto.TrainerSpec, vocab_size: int) -> None:
    """What SentencePiece finds its special pieces by."""
    trainer.pad_id, trainer.unk_id, trainer.bos_id, trainer.eos_id = PAD_ID, UNK_ID, BOS_ID, EOS_ID
    trainer.pad_piece, trainer.unk_piece, trainer.bos_piece, trainer.eos_piece = PAD, UNK, BOS, EOS
    del trainer.control_symbols[:]
    trainer.control_symbols.extend(CHAT_SYMBOLS)
    trainer.vocab_size = vocab_size
