"""What a SentencePiece model says, as arrays that compiled code reads.

Symbols are numbered: a piece is its id; a character that occurs in pieces without being one comes after the
last id. A space stands where SentencePiece writes ▁, so that most texts need not be rewritten.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.tokenizer.indentation import SPACE_SYMBOL

UNKNOWN = -1
"""The symbol of a character that no piece holds."""

_UNICODE = 0x110000
_PIECE = proto.ModelProto.SentencePiece


class Vocabulary(NamedTuple):
    """
    joined: (256, 256) bool: whether some piece holds these two bytes beside each other, where the second
        begins a character. Where it is False, what is left and what is right is encoded on its own.
    symbol_of: (0x110000,) int32: the symbol of a character, or UNKNOWN.
    byte_ids: (256,) int32: the ids of <0x00> … <0xFF>.
    size: the number of ids; a symbol that is none of them is spelled in bytes.
    """

    joined: np.ndarray
    symbol_of: np.ndarray
    byte_ids: np.ndarray
    size: int


def why_unsupported(spec: proto.ModelProto) -> str | None:
    """What keeps our loops from encoding with this model as SentencePiece does; None if nothing."""
    if spec.trainer_spec.model_type not in (proto.TrainerSpec.BPE, proto.TrainerSpec.UNIGRAM):
        return "it is neither a BPE nor a unigram model"
    if not spec.trainer_spec.byte_fallback:
        return "it has no byte fallback"
    if spec.trainer_spec.treat_whitespace_as_suffix or not spec.normalizer_spec.escape_whitespaces:
        return "it does not put spaces in front of words"
    special = [piece.piece for piece in spec.pieces if piece.type in (_PIECE.USER_DEFINED, _PIECE.UNUSED)]
    if special:
        return f"it has user-defined or unused pieces, such as {special[0]!r}"
    if any(" " in piece.piece for piece in spec.pieces):
        return "it has pieces with a space that is not written as ▁"
    pieces = dict(normal_pieces(spec))
    if " " not in pieces:
        return "it has no piece for the space"
    if any(spec.pieces[id].score > 0 for id in pieces.values()):
        return "it has scores above 0"
    return None


def normal_pieces(spec: proto.ModelProto) -> list[tuple[str, int]]:
    """(text, id) of the pieces that text is made of."""
    return [
        (piece.piece.replace(SPACE_SYMBOL, " "), id)
        for id, piece in enumerate(spec.pieces)
        if piece.type == _PIECE.NORMAL
    ]


def symbols(spec: proto.ModelProto) -> dict[str, int]:
    """The number of each piece, and of each character in a piece."""
    pieces = normal_pieces(spec)
    numbers = dict(pieces)
    for character in sorted({character for text, _ in pieces for character in text} - numbers.keys()):
        numbers[character] = len(spec.pieces) + len(numbers) - len(pieces)
    return numbers


def vocabulary(spec: proto.ModelProto) -> Vocabulary:
    """The arrays of a model."""
    joined = np.zeros((256, 256), dtype=bool)
    joined[:, 0x80:0xC0] = True  # within a character
    symbol_of = np.full(_UNICODE, UNKNOWN, dtype=np.int32)
    for text, symbol in symbols(spec).items():
        if len(text) == 1:
            symbol_of[ord(text)] = symbol
        for left, right in pairwise(text):
            joined[left.encode()[-1], right.encode()[0]] = True
    byte_ids = np.zeros(256, dtype=np.int32)
    for id, piece in enumerate(spec.pieces):
        if piece.type == _PIECE.BYTE:
            byte_ids[int(piece.piece[1:-1], 16)] = id  # "<0x0A>"
    return Vocabulary(joined, symbol_of, byte_ids, len(spec.pieces))
