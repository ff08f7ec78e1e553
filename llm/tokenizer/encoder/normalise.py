"""The text that SentencePiece encodes: characters replaced by the model's rules, white space folded.

A space stands where SentencePiece writes ▁, and where the text itself holds ▁: to it they are the same.
"""

from typing import NamedTuple

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.tokenizer.encoder.characters import character_bytes
from llm.tokenizer.encoder.compiled import allocating, compiled

_SPACE = 0x20
_U = np.uint32


class Rules(NamedTuple):
    """
    trie: (units,) uint32: darts-clone's double array, from what is replaced to a place in `replacements`.
        Empty if nothing is.
    replacements: (bytes,) uint8, each ending in 0.
    stays: (256,) bool: whether this byte is a character that stays as it is in front of any ASCII character.
    """

    trie: np.ndarray
    replacements: np.ndarray
    stays: np.ndarray
    adds_space_before: bool
    folds_spaces: bool


def rules(spec: proto.NormalizerSpec) -> Rules:
    """Of a model. The rules' first four bytes say how long the trie is."""
    blob = spec.precompiled_charsmap
    trie_bytes = int.from_bytes(blob[:4], "little")
    made = Rules(
        np.frombuffer(blob, dtype="<u4", count=trie_bytes // 4, offset=4 if blob else 0).copy(),
        np.frombuffer(blob[4 + trie_bytes :], dtype=np.uint8).copy(),
        np.zeros(256, dtype=bool),
        spec.add_dummy_prefix,
        spec.remove_extra_whitespaces,
    )
    _find_what_stays(made)
    return made


@allocating
def _find_what_stays(rules: Rules) -> None:
    pair = np.empty(2, dtype=np.uint8)
    for first in range(128):
        stays = first != _SPACE
        for second in range(128):
            pair[0], pair[1] = first, second
            _, place, followed = _rule(pair, 0, 2, rules)
            stays = stays and place < 0 and followed < 2
        rules.stays[first] = stays


@compiled
def normalise(
    text: np.ndarray, offsets: np.ndarray, rules: Rules, out: np.ndarray, out_offsets: np.ndarray
) -> int:
    """Write the normalised documents to `out` one after the other, as many as it has room for; how many."""
    n = 0
    out_offsets[0] = 0
    for document in range(len(offsets) - 1):
        n = _normalise_one(text, offsets[document], offsets[document + 1], rules, out, n)
        if n < 0:
            return document
        out_offsets[document + 1] = n
    return len(offsets) - 1


@compiled
def _normalise_one(text: np.ndarray, at: int, stop: int, rules: Rules, out: np.ndarray, n: int) -> int:
    """Where the document ends in `out`; -1 if it has no room."""
    first = n
    after_space = rules.folds_spaces
    begun = False
    while at < stop:
        if begun and rules.stays[text[at]] and at + 1 < stop and text[at + 1] < 0x80:
            if n == len(out):
                return -1
            out[n] = text[at]
            after_space = False
            n, at = n + 1, at + 1
            continue
        length, place, _ = _rule(text, at, stop, rules)
        if place >= 0:
            source, source_at, source_end = rules.replacements, place, place
            while source[source_end] != 0:
                source_end += 1
        else:
            length = character_bytes(text[at])
            source, source_at, source_end = text, at, at + length
        at += length
        if not begun:
            # Spaces in front are left out, and so is the space that is put in front of nothing else.
            if rules.folds_spaces and source_end - source_at == 1 and source[source_at] == _SPACE:
                continue
            begun = True
            if rules.adds_space_before:
                if n == len(out):
                    return -1
                out[n] = _SPACE
                n += 1
        while after_space and source_at < source_end and source[source_at] == _SPACE:
            source_at += 1
        if n + source_end - source_at > len(out):
            return -1
        if source_at < source_end:
            after_space = rules.folds_spaces and source[source_end - 1] == _SPACE
        while source_at < source_end:
            if (
                source[source_at] == 0xE2
                and source_at + 3 <= source_end
                and source[source_at + 1] == 0x96
                and source[source_at + 2] == 0x81
            ):
                out[n] = _SPACE
                source_at += 3
            else:
                out[n] = source[source_at]
                source_at += 1
            n += 1
    while rules.folds_spaces and n > first and out[n - 1] == _SPACE:
        n -= 1
    return n


@compiled
def _rule(text: np.ndarray, at: int, stop: int, rules: Rules) -> tuple[int, int, int]:
    """Bytes of the longest string here that a rule replaces, and where its replacement is, or -1; and of how
    many bytes rules begin.
    """
    length, place, followed = 0, -1, 0
    if len(rules.trie) == 0:
        return length, place, followed
    state = _offset(rules.trie[0])
    while at + followed < stop:
        byte = text[at + followed]
        state ^= _U(byte)
        unit = rules.trie[state]
        if unit & _U(0x800000FF) != byte:
            break
        followed += 1
        state ^= _offset(unit)
        if unit >> _U(8) & _U(1):
            length, place = followed, np.int64(rules.trie[state] & _U(0x7FFFFFFF))
    return length, place, followed


@compiled
def _offset(unit: np.uint32) -> np.uint32:
    return unit >> _U(10) << ((unit & _U(1 << 9)) >> _U(6))
