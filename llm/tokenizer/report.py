"""What a tokenizer makes of text, in counts that add up: whoever measures parts of a text adds the parts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm.tokenizer.special import FIRST_BYTE_ID, MIN_VOCAB_SIZE
from llm.tokenizer.tokenizer import Tokenizer

COUNTED = ("documents", "bytes", "words", "tokens", "byte_tokens", "round_trip_failures")
"""Columns of `measure`.

bytes: of UTF-8. words: what white space separates (`str.split`). tokens: without <bos> and <eos>.
byte_tokens: those that spell one byte of a character that has no piece. round_trip_failures: documents that
do not come back as `Tokenizer.normalised` says: as they were, if the tokenizer is lossless.
"""


def measure(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(documents, len(COUNTED)) int64: the counts of each text; (vocab_size,) int64: uses of each id."""
    arrays = tokenizer.encode_arrays(texts)
    ids = np.concatenate([*arrays, np.empty(0, dtype=np.int32)])
    ends = np.cumsum([len(array) for array in arrays], dtype=np.int64)
    is_byte = (ids >= FIRST_BYTE_ID) & (ids < MIN_VOCAB_SIZE)
    bytes_before = np.concatenate([[0], np.cumsum(is_byte, dtype=np.int64)])

    counts = np.zeros((len(texts), len(COUNTED)), dtype=np.int64)
    counts[:, 0] = 1
    counts[:, 1] = [len(text.encode()) for text in texts]
    counts[:, 2] = [len(text.split()) for text in texts]
    counts[:, 3] = np.diff(ends, prepend=0)
    counts[:, 4] = np.diff(bytes_before[ends], prepend=0)
    counts[:, 5] = [
        tokenizer.decode(array.tolist()) != tokenizer.normalised(text)
        for array, text in zip(arrays, texts, strict=True)
    ]
    return counts, np.bincount(ids, minlength=tokenizer.vocab_size)


def ratios(counts: np.ndarray) -> dict[str, int | float | None]:
    """(len(COUNTED),) counts of any text by their names, and what follows from them; None where it is 0 / 0.

        bytes_per_token  = bytes / tokens
        fertility        = tokens / words     (Rust et al. 2021, https://arxiv.org/abs/2012.15613)
        byte_token_share = byte_tokens / tokens

    Fertility says little of a language that does not put white space between words.
    """
    named: dict[str, int] = dict(zip(COUNTED, counts.tolist(), strict=True))
    return {
        **named,
        "bytes_per_token": _ratio(named["bytes"], named["tokens"]),
        "fertility": _ratio(named["tokens"], named["words"]),
        "byte_token_share": _ratio(named["byte_tokens"], named["tokens"]),
    }


@dataclass(frozen=True)
class PieceFacts:
    """The vocabulary, beside the special and byte pieces."""

    pieces: int
    unused: list[str]
    """Pieces that no text used, in order of their ids: those first that training rated best."""
    longest: list[str]
    """All pieces, the longest first."""


def piece_facts(tokenizer: Tokenizer, used: np.ndarray) -> PieceFacts:
    """used: (vocab_size,) bool."""
    texts = [tokenizer.decode_bytes([id]).decode() for id in range(MIN_VOCAB_SIZE, tokenizer.vocab_size)]
    unused = [text for text, is_used in zip(texts, used[MIN_VOCAB_SIZE:], strict=True) if not is_used]
    return PieceFacts(len(texts), unused, sorted(texts, key=lambda text: -len(text)))


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
