"""A trained tokenizer: text to ids and back, exactly."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.tokenizer.indentation import SPACE_SYMBOL
from llm.tokenizer.special import BOS_ID, END_ID, EOS_ID, PAD_ID, SPECIAL_PIECES

MODEL_FILE = "tokenizer.model"
VOCABULARY_FILE = "tokenizer.vocab"


def load_tokenizer(path: str | Path) -> "Tokenizer":
    """Load `tokenizer.model`, given the file itself or a directory (of an artifact) that holds it.

    Raises FileNotFoundError if it is not there, and ValueError if it is not a tokenizer of ours.
    """
    path = Path(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer at {file}; make one with `manta tokenizer`")
    return Tokenizer(file.read_bytes())


class Tokenizer:
    """A SentencePiece model with our special ids (llm/tokenizer/special.py).

    Models trained with the "lossless" preset keep decode(encode(text)) == text for every text (a word model
    for every text without U+2581). A lone surrogate is no text: encoding one raises UnicodeEncodeError.
    """

    def __init__(self, model: bytes):
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._processor.get_piece_size()
        self.pad_id, self.bos_id, self.eos_id, self.end_id = PAD_ID, BOS_ID, EOS_ID, END_ID

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

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model file: equal fingerprints encode equally."""
        return hashlib.sha256(self.model).hexdigest()

    def __len__(self) -> int:
        return self.vocab_size

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self.model,)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without <bos> or <eos>; never a special id, whatever the text spells."""
        if self.is_lossless and SPACE_SYMBOL in text:
            return self._encode_around_space_symbols(text)
        return self._processor.encode(text)

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """`encode` of each text as int32 arrays: no Python object per token.

        threads: of SentencePiece's own pool.
        """
        arrays = self._processor.encode(list(texts), out_type="numpy", num_threads=threads)
        if self.is_lossless:
            for row, text in enumerate(texts):
                if SPACE_SYMBOL in text:
                    arrays[row] = np.array(self._encode_around_space_symbols(text), dtype=np.int32)
        return arrays

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special ids are left out, bytes that are not UTF-8 become U+FFFD."""
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._has_dummy_prefix else text

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 bytes of the ids. One id may be a part of a character: join before decoding."""
        text = b"".join(map(self._piece_bytes.__getitem__, ids))
        return text.replace(SPACE_SYMBOL.encode(), b" ") if self._spells_spaces else text

    def normalised(self, text: str) -> str:
        """What `decode(encode(text))` should give: the text itself, or what the model's rules make of it."""
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
