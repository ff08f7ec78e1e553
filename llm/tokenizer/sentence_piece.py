"""A SentencePiece model as a tokenizer: text to ids and back, exactly."""

from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.tokenizer.indentation import SPACE_SYMBOL
from llm.tokenizer.special import SPECIAL_PIECES
from llm.tokenizer.tokenizer import Tokenizer

MODEL_FILE = "tokenizer.model"
VOCABULARY_FILE = "tokenizer.vocab"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with our special ids.

    Models trained with the "lossless" preset keep decode(encode(text)) == text for every text (a word model
    for every text without U+2581).
    """

    def __init__(self, model: bytes):
        super().__init__(model)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._processor.get_piece_size()

        spec = proto.ModelProto.FromString(model)
        first = tuple(piece.piece for piece in spec.pieces[: len(SPECIAL_PIECES)])
        if first != SPECIAL_PIECES:
            raise ValueError(f"not a tokenizer made by `manta tokenizer`: its first pieces are {first}")
        self._has_dummy_prefix = spec.normalizer_spec.add_dummy_prefix
        # A word model spells runs of unknown words in bytes, with ▁ between them: there ▁ is a space.
        self._spells_spaces = spec.trainer_spec.model_type == proto.TrainerSpec.WORD
        normalizer = spec.normalizer_spec
        is_rewritten = normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces
        self.is_lossless = normalizer.name == "identity" and not is_rewritten
        """Whether a text is encoded as it is, with its own ▁ spelled in bytes."""
        self._piece_bytes = [_bytes_of(piece) for piece in spec.pieces]
        # SentencePiece reads a ▁ of the text as a space; its three bytes stand for it truly.
        self._space_symbol_ids = [
            self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_SYMBOL.encode()
        ]

    def encode(self, text: str) -> list[int]:
        if self.is_lossless and SPACE_SYMBOL in text:
            return self._encode_around_space_symbols(text)
        return self._processor.encode(text)

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """threads: of SentencePiece's own pool."""
        arrays = self._processor.encode(list(texts), out_type="numpy", num_threads=threads)
        if self.is_lossless:
            for row, text in enumerate(texts):
                if SPACE_SYMBOL in text:
                    arrays[row] = np.array(self._encode_around_space_symbols(text), dtype=np.int32)
        return arrays

    def decode(self, ids: Iterable[int]) -> str:
        text = super().decode(ids)
        return text.removeprefix(" ") if self._has_dummy_prefix else text

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        text = b"".join(map(self._piece_bytes.__getitem__, ids))
        return text.replace(SPACE_SYMBOL.encode(), b" ") if self._spells_spaces else text

    def special_name(self, id: int) -> str | None:
        return None if self._piece_bytes[id] else self._processor.id_to_piece(id)

    def normalised(self, text: str) -> str:
        if self.is_lossless:
            return text
        normalised = self._processor.normalize(text).replace(SPACE_SYMBOL, " ")
        return normalised.removeprefix(" ") if self._has_dummy_prefix else normalised

    def vocabulary(self) -> str:
        """One line a piece, tab, its score: `tokenizer.vocab` as SentencePiece writes it, layout escaped."""
        pieces = self._processor.id_to_piece(list(range(self.vocab_size)))
        layout = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})
        score = self._processor.get_score
        return "".join(f"{piece.translate(layout)}\t{score(i):g}\n" for i, piece in enumerate(pieces))

    def _encode_around_space_symbols(self, text: str) -> list[int]:
        segments = text.split(SPACE_SYMBOL)
        ids = self._processor.encode(segments[0])
        for segment in segments[1:]:
            ids += self._space_symbol_ids + self._processor.encode(segment)
        return ids


def _bytes_of(piece: proto.ModelProto.SentencePiece) -> bytes:
    if piece.type == piece.BYTE:
        return bytes([int(piece.piece[1:-1], base=16)])  # "<0x0A>"
    if piece.type in (piece.CONTROL, piece.UNKNOWN):
        return b""
    return piece.piece.replace(SPACE_SYMBOL, " ").encode()
