"""Ids of whole columns of documents: SentencePiece's, made by compiled loops where those can, or of bytes."""

import logging
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.tokenizer.encoder.vocabulary import why_unsupported
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from llm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llm.tokenizer.encoder.encoder import Encoder

_COMPILE_AFTER, _LOAD_AFTER = 16_000_000, 4_000_000
"""Bytes that SentencePiece encodes in about the time that compiling takes, or loading the machine code."""
_COMPARED = 500_000
_MANY = 2
"""Times the bytes after which compiling pays: so many that nothing is gained by waiting."""
_MODULES = {proto.TrainerSpec.BPE: "bpe", proto.TrainerSpec.UNIGRAM: "unigram"}
"""Where the loops are, in llm/tokenizer/encoder."""

_log = logging.getLogger(__name__)


def document_encoder(
    tokenizer: Tokenizer, dtype: np.dtype, expected: int = 0
) -> "DocumentEncoder | PlainEncoder":
    """What encodes documents with a tokenizer; arguments as of `DocumentEncoder`."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return DocumentEncoder(tokenizer, dtype, expected=expected)
    return PlainEncoder(tokenizer, dtype)


class PlainEncoder:
    """Encodes batch after batch with the tokenizer's own library. For one thread at a time."""

    why_slow = None

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype):
        """dtype: of the ids."""
        self._tokenizer, self._dtype = tokenizer, dtype

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """As of `DocumentEncoder`."""
        texts.validate(full=True)
        eos = np.array([self._tokenizer.eos_id], dtype=self._dtype)
        arrays = self._tokenizer.encode_arrays(texts.to_pylist())
        pieces = [part.astype(self._dtype) for ids in arrays for part in (ids, eos)]
        ends = np.cumsum([len(ids) + 1 for ids in arrays], dtype=np.int64)
        return np.concatenate([*pieces, eos[:0]]), ends


class DocumentEncoder:
    """Encodes batch after batch with a SentencePiece model. For one thread at a time.

    SentencePiece does the first batches. Then come some that are encoded both by it and by the compiled loops
    (llm/tokenizer/encoder), and if all ids are equal, the loops do what comes after.
    """

    def __init__(
        self,
        tokenizer: SentencePieceTokenizer,
        dtype: np.dtype,
        compile_after: int = _COMPILE_AFTER,
        load_after: int = _LOAD_AFTER,
        compared: int = _COMPARED,
        expected: int = 0,
    ):
        """dtype: of the ids. compile_after: bytes of text that SentencePiece encodes alone; load_after: if
        the loops were compiled on this machine before. compared: bytes for which they must give its ids
        before they are trusted. expected: bytes that will come, if that is known; where they are many, the
        loops are made ready at once.
        """
        self._tokenizer, self._dtype = tokenizer, dtype
        self._plain = PlainEncoder(tokenizer, dtype)
        many = expected > _MANY * compile_after
        compile_after = 0 if many else compile_after
        self._compile_after, self._load_after = compile_after, min(load_after, compile_after)
        self._encoded, self._to_compare = 0, compared
        self._compiled: Encoder | None = None
        self.why_slow = why_unsupported(proto.ModelProto.FromString(tokenizer.model))
        """Why SentencePiece does all of it; None if it does not."""
        if many:
            self.encode(pa.array([""]))  # which makes the loops

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """(ids,): the documents one after the other, each with <eos>; (documents,) int64: where each ends.

        texts: strings without nulls. Raises ValueError if they are not UTF-8.
        """
        texts.validate(full=True)
        if self._compiled is not None and self._to_compare <= 0:
            return self._compiled.encode(*utf8(texts), self._tokenizer.eos_id)
        compares = self.why_slow is None and self._is_worth_it()
        if compares and (enough := self._documents_to_compare(texts)) < len(texts):
            return _joined(self.encode(texts[:enough]), self.encode(texts[enough:]))
        ids, ends = self._plain.encode(texts)
        if compares:
            try:
                self._compare(texts, ids, ends)
            except Exception as error:  # of the compiler, or of machine code on a damaged disk
                self.why_slow = f"{type(error).__name__}: {error}"
            if self.why_slow is not None:
                self._compiled = None
                _log.warning("SentencePiece alone encodes, several times slower: %s", self.why_slow)
        self._encoded += texts.nbytes
        return ids, ends

    def _is_worth_it(self) -> bool:
        """Whether so much has been encoded that the loops are likely to save what they cost at first."""
        if self._compiled is None and self._load_after <= self._encoded < self._compile_after:
            from llm.tokenizer.encoder.compiled import was_compiled

            kind = proto.ModelProto.FromString(self._tokenizer.model).trainer_spec.model_type
            self._load_after = 0 if was_compiled(_MODULES[kind]) else self._compile_after
        return self._encoded >= self._load_after

    def _documents_to_compare(self, texts: pa.Array) -> int:
        """The first ones, which have the bytes that are still to be compared; one at least."""
        sizes = np.cumsum(pc.binary_length(texts).to_numpy())
        return int(np.searchsorted(sizes, max(self._to_compare, 0))) + 1

    def _compare(self, texts: pa.Array, ids: np.ndarray, ends: np.ndarray) -> None:
        """The compiled loops with SentencePiece."""
        if self._compiled is None:
            from llm.tokenizer.encoder.encoder import Encoder

            spec = proto.ModelProto.FromString(self._tokenizer.model)
            normalises = not self._tokenizer.is_lossless
            self._compiled = Encoder(spec, normalises, self._dtype)
        found_ids, found_ends = self._compiled.encode(*utf8(texts), self._tokenizer.eos_id)
        if not np.array_equal(ids, found_ids) or not np.array_equal(ends, found_ends):
            self.why_slow = "the compiled loops gave other ids for a sample"
        self._to_compare -= texts.nbytes


def _joined(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and ends of documents and of those after them."""
    (ids, ends), (more_ids, more_ends) = first, second
    return np.concatenate([ids, more_ids]), np.concatenate([ends, more_ends + len(ids)])


def utf8(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of strings as they lie in memory, (bytes,) uint8, and (strings + 1,) int64: their borders."""
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, offsets, data = texts.buffers()
    borders = np.frombuffer(offsets, dtype=width, count=texts.offset + len(texts) + 1)[texts.offset :]
    text = np.frombuffer(data or b"", dtype=np.uint8)
    return text, borders.astype(np.int64)
