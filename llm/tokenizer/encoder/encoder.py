"""Whole documents to ids."""

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.tokenizer.encoder import bpe, unigram
from llm.tokenizer.encoder.bpe import BpeModel, bpe_model
from llm.tokenizer.encoder.compiled import compiling_alone
from llm.tokenizer.encoder.normalise import Rules, normalise, rules
from llm.tokenizer.encoder.unigram import UnigramModel, unigram_model
from llm.tokenizer.encoder.word_table import cut, padded, with_larger_index, word_table

_WORDS = 1 << 19  # 32 MiB
_PLACES = 1 << 24
_WORDS_AT_ONCE = 1 << 13  # the words of one turn stay in the CPU's cache
_OFTEN_LONGEST = 256  # bytes of a word
_INLINE_IDS = 4  # that a word may write beyond its own


class Encoder:
    """The compiled loops with one model, and the words they have seen. For one thread at a time."""

    def __init__(self, spec: proto.ModelProto, normalises: bool, dtype: np.dtype):
        """Compiles, where that was not done before on this machine.

        normalises: whether the text is rewritten by the model's rules, or taken as it is. dtype: of the ids.
        """
        is_bpe = spec.trainer_spec.model_type == proto.TrainerSpec.BPE
        self._model: BpeModel | UnigramModel = bpe_model(spec) if is_bpe else unigram_model(spec)
        self._rules = rules(spec.normalizer_spec) if normalises else None
        self._dtype = dtype
        self.forget()
        with compiling_alone():
            self.encode(np.frombuffer(b"a b", dtype=np.uint8), np.array([0, 3]))

    def encode(
        self, text: np.ndarray, offsets: np.ndarray, eos_id: int = -1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of documents, one after the other, and (documents,) int64: where each ends among them.

        text: (bytes,) uint8, valid UTF-8. offsets: (documents + 1,) int64: where each begins, and the last
        ends. eos_id: written after each document, if not negative.
        """
        if self._rules is not None:
            text, offsets = _normalised(text, offsets, self._rules)
        else:
            text, offsets = _copied(text, offsets)
        documents = len(offsets) - 1
        out = np.empty(int(offsets[-1] - offsets[0]) + documents + _INLINE_IDS, dtype=self._dtype)
        ends = np.empty(documents, dtype=np.int64)
        words = np.empty((_WORDS_AT_ONCE, 2), dtype=np.int64)
        new = np.empty(_WORDS_AT_ONCE, dtype=np.int64)
        path, ids = unigram.paths(_OFTEN_LONGEST), np.empty(_OFTEN_LONGEST, dtype=np.int32)
        document, at, n, score = 0, int(offsets[0]) if documents else 0, 0, np.float32(0)
        while document < documents:
            first = document
            document, at, n_words, n_new = cut(
                text, offsets, self._model.vocabulary.joined, self._table, document, at, words, new
            )
            if n_words == 0:
                self._make_room(len(text))
                continue
            these = words[:n_words]
            if isinstance(self._model, BpeModel):
                bpe.encode_new_words(text, these, new[:n_new], self._table, self._model)
                n = bpe.put_together(these, self._table, eos_id, out, n, ends, first)
            else:
                longest = int(np.diff(these[:, 1], append=at).max())
                if longest >= len(path.ids):
                    path, ids = unigram.paths(longest), np.empty(longest, dtype=np.int32)
                unigram.encode_new_words(text, these, new[:n_new], self._table, self._model, path, ids)
                n, score = unigram.put_together(
                    text,
                    these,
                    self._table,
                    self._model,
                    path,
                    eos_id,
                    np.float32(score),
                    out,
                    n,
                    ends,
                    first,
                )
        return out[:n], ends

    def forget(self, longest_word: int = 0) -> None:
        """Forget all words."""
        self._table = word_table(_WORDS, max(_PLACES, longest_word))

    def _make_room(self, longest_word: int) -> None:
        """For one more word at least."""
        larger = with_larger_index(self._table)
        if larger is None:
            self.forget(longest_word)
        else:
            self._table = larger


def _normalised(text: np.ndarray, offsets: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    room = len(text) + len(text) // 4 + len(offsets) + 64
    while True:
        out, out_offsets = padded(room), np.empty(len(offsets), dtype=np.int64)
        if normalise(text, offsets, rules, out[:room], out_offsets) == len(offsets) - 1:
            return out, out_offsets
        room *= 2


def _copied(text: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = int(offsets[-1] - offsets[0])
    out = padded(size)
    out[:size] = text[offsets[0] : offsets[-1]]
    return out, offsets - offsets[0]
