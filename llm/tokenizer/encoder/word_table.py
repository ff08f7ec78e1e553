"""The words encoded so far, and the cutting of a text into words.

A word ends where no piece reaches across: for BPE no merge does, for unigram no path. So its ids depend on
nothing beside it (unigram adds up its scores along the text, and sees to that itself), and are looked up.
"""

from typing import NamedTuple

import numpy as np

from llm.tokenizer.encoder.compiled import compiled

LOW, HIGH, SIZE, PLACE, COUNT, LIMIT, IDS = range(7)
"""Columns of a word. One of at most 15 bytes is its own key: eight bytes in LOW, seven and the size in HIGH.
For a longer one they hold a hash, and its bytes lie at PLACE. Up to four ids lie in the two columns from IDS,
more of them at PLACE. LIMIT is the unigram model's.
"""
_FIRST_SLOTS = 1 << 12
_COLUMNS = 8  # a word is one line of a CPU's cache
_SHORT = np.uint64(15)
_INLINE = 4
_LONG_MARK = np.uint64(0xFF << 56)
_M0, _M1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_ONE, _U3, _U7, _U8, _U16 = np.uint64(1), np.uint64(3), np.uint64(7), np.uint64(8), np.uint64(16)
_U32, _U56, _U63, _ALL = np.uint64(32), np.uint64(56), np.uint64(63), np.uint64(2**64 - 1)
_ID_BITS = np.uint64(2**32 - 1)

END = -1
"""In place of a word: the end of a document."""


class WordTable(NamedTuple):
    """
    index: (slots,) int32, a power of two: a word's number, at the slot that its key is hashed to or one after
        it; -1 where there is none.
    words: (words, 8) uint64, in the order they were met: the frequent ones lie close together.
    texts, ids: what does not fit there; a word has the same PLACE in both, and no more ids than bytes.
    used: (2,) int64: words, and places.
    """

    index: np.ndarray
    words: np.ndarray
    texts: np.ndarray
    ids: np.ndarray
    used: np.ndarray


def word_table(words: int, places: int) -> WordTable:
    """An empty one, for so many words and so many bytes of longer ones."""
    return WordTable(
        np.full(_FIRST_SLOTS, -1, dtype=np.int32),
        np.empty((words, _COLUMNS), dtype=np.uint64),
        np.empty(places, dtype=np.uint8),
        np.empty(places, dtype=np.int32),
        np.zeros(2, dtype=np.int64),
    )


def with_larger_index(table: WordTable) -> WordTable | None:
    """The table with more slots in its index; None if it lacks none, but room for words or their bytes."""
    slots = len(table.index)
    if 2 * table.used[0] < slots or slots >= 2 * len(table.words):
        return None
    larger = table._replace(index=np.full(2 * slots, -1, dtype=np.int32))
    _fill_index(larger)
    return larger


@compiled
def cut(
    text: np.ndarray,
    offsets: np.ndarray,
    joined: np.ndarray,
    table: WordTable,
    document: int,
    at: int,
    words: np.ndarray,
    new: np.ndarray,
) -> tuple[int, int, int, int]:
    """Cut on from byte `at` of a document, until all are cut or `words` or the table is full.

    text: its memory goes on for 16 bytes more and begins at a multiple of 8, see `padded`.
    words: (n, 2) int64, written: each word's number and where it begins; END and where the document ended.
    new: (n,) int64, written: the rows of `words` whose words have no ids yet.
    Returns document and byte to go on from, and how many words and new ones there are.
    """
    n_words = n_new = 0
    eights = text.view(np.uint64)
    room = min(len(words), len(table.index) // 2 - table.used[0], len(table.words) - table.used[0])
    while document < len(offsets) - 1:
        stop = offsets[document + 1]
        while at < stop:
            if n_words == room:
                return document, at, n_words, n_new
            end = _word_end(text, np.uint64(at), np.uint64(stop), joined)
            low, high = _key(eights, np.uint64(at), np.uint64(end - at))
            if table.used[1] + end - at > len(table.texts):
                return document, at, n_words, n_new
            slot = _find(text, at, end, low, high, table)
            word = table.index[slot]
            if word < 0:
                word = table.index[slot] = _add(text, at, end, low, high, table)
                new[n_new] = n_words
                n_new += 1
            words[n_words, 0], words[n_words, 1] = word, at
            n_words += 1
            at = end
        if n_words == room:
            return document, at, n_words, n_new
        words[n_words, 0], words[n_words, 1] = END, at
        n_words += 1
        document += 1
        if document < len(offsets) - 1:
            at = offsets[document]
    return document, at, n_words, n_new


@compiled
def _word_end(text: np.ndarray, at: np.uint64, stop: np.uint64, joined: np.ndarray) -> int:
    end = at + _ONE
    while end < stop and joined[text[end - _ONE], text[end]]:
        end += _ONE
    return np.int64(end)


@compiled
def _key(eights: np.ndarray, at: np.uint64, size: np.uint64) -> tuple[np.uint64, np.uint64]:
    """LOW and HIGH of a word."""
    low = _eight_bytes(eights, at)
    if size <= _U8:
        return low & _ALL >> _U8 * (_U8 - size), size << _U56
    if size <= _SHORT:
        high = _eight_bytes(eights, at + _U8) & _ALL >> _U8 * (_U16 - size)
        return low, high | size << _U56
    high, done = low, _U8
    while done < size:
        some = _eight_bytes(eights, at + done)
        if size - done < _U8:
            some &= _ALL >> _U8 * (_U8 - (size - done))
        low = (low ^ some) * _M0
        low ^= low >> _U32
        high = (high + some) * _M1
        high ^= high >> _U32
        done += _U8
    return low, high | _LONG_MARK


@compiled
def _eight_bytes(eights: np.ndarray, at: np.uint64) -> np.uint64:
    """Those of the text from `at` on, by two aligned reads."""
    shift = _U8 * (at & _U7)
    return eights[at >> _U3] >> shift | eights[(at >> _U3) + _ONE] << _ONE << _U63 - shift


@compiled
def _find(
    text: np.ndarray, start: int, end: int, low: np.uint64, high: np.uint64, table: WordTable
) -> np.uint64:
    """The word's slot in the index, or the empty one where it would be."""
    last = np.uint64(len(table.index) - 1)
    slot = _hash(low, high) & last
    while table.index[slot] >= 0:
        word = table.words[table.index[slot]]
        is_equal = word[LOW] == low and word[HIGH] == high
        if is_equal and (high < _LONG_MARK or _equals(text, start, end, table, word)):
            break
        slot = (slot + _ONE) & last
    return slot


@compiled
def _hash(low: np.uint64, high: np.uint64) -> np.uint64:
    mixed = (low ^ high * _M1) * _M0
    return mixed ^ mixed >> _U32


@compiled
def _equals(text: np.ndarray, start: int, end: int, table: WordTable, word: np.ndarray) -> bool:
    if word[SIZE] != np.uint64(end - start):
        return False
    place, at = np.int64(word[PLACE]), start
    while at < end and table.texts[place + at - start] == text[at]:
        at += 1
    return at == end


@compiled
def _add(text: np.ndarray, start: int, end: int, low: np.uint64, high: np.uint64, table: WordTable) -> int:
    """A word without ids yet; its number."""
    number = table.used[0]
    word = table.words[number]
    word[LOW], word[HIGH], word[SIZE] = low, high, np.uint64(end - start)
    word[PLACE] = np.uint64(table.used[1])
    if end - start > _INLINE:  # it may need its place
        if word[SIZE] > _SHORT:
            for at in range(start, end):
                table.texts[table.used[1] + at - start] = text[at]
        table.used[1] += end - start
    table.used[0] += 1
    return number


@compiled
def _fill_index(table: WordTable) -> None:
    last = np.uint64(len(table.index) - 1)
    for number in range(table.used[0]):
        slot = _hash(table.words[number, LOW], table.words[number, HIGH]) & last
        while table.index[slot] >= 0:
            slot = (slot + _ONE) & last
        table.index[slot] = number


@compiled
def set_ids(table: WordTable, number: int, ids: np.ndarray, count: int) -> None:
    """Keep the first `count` of `ids` as those of the word."""
    word = table.words[number]
    word[COUNT] = np.uint64(count)
    if count <= _INLINE:
        word[IDS] = word[IDS + 1] = np.uint64(0)
        for i in range(count):
            word[IDS + i // 2] |= np.uint64(ids[i]) << np.uint64(32 * (i % 2))
    else:
        place = np.int64(word[PLACE])
        for i in range(count):
            table.ids[place + i] = ids[i]


@compiled
def copy_ids(table: WordTable, number: int, out: np.ndarray, n: int) -> int:
    """Write the word's ids to `out` from n on; where they end. `out` needs room for four more."""
    word = table.words[number]
    count = np.int64(word[COUNT])
    first, second = word[IDS], word[IDS + 1]
    out[n], out[n + 1] = first & _ID_BITS, first >> _U32
    out[n + 2], out[n + 3] = second & _ID_BITS, second >> _U32
    if count > _INLINE:
        place = np.int64(word[PLACE])
        for i in range(count):
            out[n + i] = table.ids[place + i]
    return n + count


def padded(room: int) -> np.ndarray:
    """(room,) uint8 such that `cut` can read it eight bytes at a time."""
    return np.empty(room // 8 + 3, dtype=np.uint64).view(np.uint8)
