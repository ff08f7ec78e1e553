"""Byte-pair encoding on bytes, as GPT-2, Llama 3 and Qwen have it: a `tokenizer.json` with our special ids.

The library `tokenizers` cuts the text. Pieces are written in an alphabet with one visible character for each
byte, so that every text has ids, and a piece can be a part of a character.

Our special pieces, and those that the tokenizer's maker added as special, are never read in a text. Pieces
that were added as plain text, such as Qwen's <think>, are.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers

from llm.tokenizer.special import SPECIAL_PIECES
from llm.tokenizer.tokenizer import Tokenizer

JSON_FILE = "tokenizer.json"


def _alphabet() -> dict[str, int]:
    """By its character in a piece, each byte: itself where it is visible in Latin-1, else one from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


ALPHABET = _alphabet()


class ByteLevelTokenizer(Tokenizer):
    """A `tokenizer.json` that `llm.tokenizer.renumber_json` made.

    Without a normaliser decode(encode(text)) == text for every text.
    """

    def __init__(self, model: bytes):
        """Raises ValueError if it is none, or its first ids are not ours."""
        super().__init__(model)
        self._library = read_json(model)
        # Read as the text that they are: only code that works with ids puts special pieces into a sequence.
        self._library.encode_special_tokens = True
        self.vocab_size = self._library.get_vocab_size()
        pieces = [self._library.id_to_token(id) for id in range(self.vocab_size)]
        first = tuple(pieces[: len(SPECIAL_PIECES)])
        if first != SPECIAL_PIECES:
            raise ValueError(f"not a tokenizer that `manta import` made: its first pieces are {first}")
        self.is_lossless = self._library.normalizer is None
        self._piece_bytes = [_bytes_of(piece or "") for piece in pieces]
        for id, token in self._library.get_added_tokens_decoder().items():
            self._piece_bytes[id] = b"" if token.special else token.content.encode()

    def encode(self, text: str) -> list[int]:
        try:
            return self._library.encode(text, add_special_tokens=False).ids
        except TypeError:  # which says nothing of what is wrong with the text
            text.encode()
            raise

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """On as many threads as the library takes: `TOKENIZERS_PARALLELISM=false` makes it one."""
        try:
            encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            "".join(texts).encode()
            raise
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self._piece_bytes.__getitem__, ids))

    def special_name(self, id: int) -> str | None:
        return None if self._piece_bytes[id] else self._library.id_to_token(id)

    def normalised(self, text: str) -> str:
        return text if self.is_lossless else self._library.normalizer.normalize_str(text)


def read_json(content: bytes) -> tokenizers.Tokenizer:
    """What the library makes of a `tokenizer.json`. Raises ValueError if it cannot read it."""
    try:
        return tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # of no kind that says more
        raise ValueError(f"{JSON_FILE}: cannot be read: {' '.join(str(error).split())}") from None


def _bytes_of(piece: str) -> bytes:
    try:
        return bytes([ALPHABET[character] for character in piece])
    except KeyError:  # no text has it
        return piece.encode()
