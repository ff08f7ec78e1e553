"""One word by byte-pair encoding, as SentencePiece does it: merge the pair whose piece scores best, of equals
the leftmost, until no pair makes a piece. Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.
"""

import math
from typing import NamedTuple

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.tokenizer.encoder.characters import character_bytes, code_point
from llm.tokenizer.encoder.compiled import allocating, compiled
from llm.tokenizer.encoder.pair_table import ABSENT, find, pair_table
from llm.tokenizer.encoder.vocabulary import Vocabulary, symbols, vocabulary
from llm.tokenizer.encoder.word_table import END, SIZE, WordTable, copy_ids, set_ids

_SHORT = 32  # bytes; up to here it is faster to look at all pairs again than to keep a heap of them
_RANK, _SYMBOL = np.uint64(32), np.uint64(2**32 - 1)
_MERGED_AWAY = -2


class BpeModel(NamedTuple):
    """merges: a pair table from two symbols to rank << 32 | the piece that they make. The best score has
    rank 0.
    """

    vocabulary: Vocabulary
    merges: np.ndarray


def bpe_model(spec: proto.ModelProto) -> BpeModel:
    numbers = symbols(spec)
    score = {id: _score(spec, id) for id in numbers.values() if id < len(spec.pieces)}
    rank = {each: place for place, each in enumerate(sorted(set(score.values()), reverse=True))}
    pairs, values = [], []
    for text, id in numbers.items():
        for middle in range(1, len(text)):
            left, right = numbers.get(text[:middle]), numbers.get(text[middle:])
            if left is not None and right is not None:
                pairs.append((left, right))
                values.append(rank[score[id]] << 32 | id)
    return BpeModel(vocabulary(spec), pair_table(pairs, values))


def _score(spec: proto.ModelProto, id: int) -> tuple[float, float]:
    """What SentencePiece compares: the bits of a float, to which -0.0 is less than 0.0."""
    score: float = spec.pieces[id].score
    return score, math.copysign(1.0, score)


@allocating
def encode_new_words(
    text: np.ndarray, words: np.ndarray, new: np.ndarray, table: WordTable, model: BpeModel
) -> None:
    """Give ids to the words of the rows `new`."""
    ids, symbols = np.empty(_SHORT, dtype=np.int32), np.empty(_SHORT, dtype=np.int32)
    begins, merges = np.empty(_SHORT + 1, dtype=np.int64), np.empty(_SHORT, dtype=np.uint64)
    for row in new:
        number, start = words[row]
        end = start + np.int64(table.words[number, SIZE])
        if end - start <= _SHORT:
            count = _merge_short(text, start, end, model, symbols, begins, merges, ids)
            set_ids(table, number, ids, count)
        else:
            many_ids = np.empty(end - start, dtype=np.int32)
            set_ids(table, number, many_ids, _merge_long(text, start, end, model, many_ids))


@compiled
def put_together(
    words: np.ndarray, table: WordTable, eos_id: int, out: np.ndarray, n: int, ends: np.ndarray, document: int
) -> int:
    """Write the ids of all words to `out` from n on, and where documents end; where the ids end."""
    for row in range(len(words)):
        number = words[row, 0]
        if number == END:
            if eos_id >= 0:
                out[n] = eos_id
                n += 1
            ends[document] = n
            document += 1
        else:
            n = copy_ids(table, number, out, n)
    return n


@compiled
def _merge_short(
    text: np.ndarray,
    start: int,
    end: int,
    model: BpeModel,
    symbols: np.ndarray,
    begins: np.ndarray,
    merges: np.ndarray,
    ids: np.ndarray,
) -> int:
    """Write the ids of a word of at most `_SHORT` bytes; how many.

    Written as well: symbols, where each begins, and the merge of each with its right neighbour.
    """
    n = _characters(text, start, end, model, symbols, begins)
    for i in range(n - 1):
        merges[i] = _merge(model, symbols[i], symbols[i + 1])
    while n > 1:
        best = 0
        for i in range(1, n - 1):
            if merges[i] >> _RANK < merges[best] >> _RANK:
                best = i
        if merges[best] == ABSENT:
            break
        symbols[best] = merges[best] & _SYMBOL
        n -= 1
        for i in range(best + 1, n):
            symbols[i], begins[i], merges[i - 1] = symbols[i + 1], begins[i + 1], merges[i]
        begins[n] = end
        if best > 0:
            merges[best - 1] = _merge(model, symbols[best - 1], symbols[best])
        if best < n - 1:
            merges[best] = _merge(model, symbols[best], symbols[best + 1])
    count = 0
    for i in range(n):
        count = _spell(text, begins[i], begins[i + 1], symbols[i], model, ids, count)
    return count


@allocating
def _merge_long(text: np.ndarray, start: int, end: int, model: BpeModel, ids: np.ndarray) -> int:
    """Ids of a word of any length, and how many: in n log n steps, by a heap of rank << 32 | left symbol."""
    symbols, begins = np.empty(end - start, dtype=np.int32), np.empty(end - start + 1, dtype=np.int64)
    n = _characters(text, start, end, model, symbols, begins)
    following, preceding = np.arange(1, n + 1), np.arange(-1, n - 1)
    heap, size = np.empty(3 * n, dtype=np.uint64), 0  # n - 1 pairs, and two for each of n - 1 merges
    for left in range(n - 1):
        size = _offer(heap, size, model, symbols, left, left + 1)
    while size > 0:
        top, size = heap[0], size - 1
        _sift_down(heap, size, heap[size])
        left = np.int64(top & _SYMBOL)
        right = following[left]
        if right == n or symbols[left] == _MERGED_AWAY:
            continue
        merge = _merge(model, symbols[left], symbols[right])
        if merge == ABSENT or merge >> _RANK != top >> _RANK:
            continue  # one of the two has been merged since
        symbols[left], symbols[right] = merge & _SYMBOL, _MERGED_AWAY
        beyond = following[left] = following[right]
        if beyond < n:
            preceding[beyond] = left
            size = _offer(heap, size, model, symbols, left, beyond)
        if preceding[left] >= 0:
            size = _offer(heap, size, model, symbols, preceding[left], left)
    count = left = 0
    while left < n:
        count = _spell(text, begins[left], begins[following[left]], symbols[left], model, ids, count)
        left = following[left]
    return count


@compiled
def _characters(
    text: np.ndarray, start: int, end: int, model: BpeModel, symbols: np.ndarray, begins: np.ndarray
) -> int:
    """Write the symbol of each character and where it begins, and the end; their number."""
    n, at = 0, start
    while at < end:
        symbols[n], begins[n] = model.vocabulary.symbol_of[code_point(text, at)], at
        n += 1
        at += character_bytes(text[at])
    begins[n] = end
    return n


@compiled
def _merge(model: BpeModel, left: int, right: int) -> np.uint64:
    if left < 0 or right < 0:
        return ABSENT
    return find(model.merges, left, right)


@compiled
def _spell(
    text: np.ndarray, start: int, end: int, symbol: int, model: BpeModel, ids: np.ndarray, count: int
) -> int:
    """The symbol's id, or those of its bytes."""
    if 0 <= symbol < model.vocabulary.size:
        ids[count] = symbol
        return count + 1
    for at in range(start, end):
        ids[count] = model.vocabulary.byte_ids[text[at]]
        count += 1
    return count


@compiled
def _offer(heap: np.ndarray, size: int, model: BpeModel, symbols: np.ndarray, left: int, right: int) -> int:
    """Put the pair into the heap if it makes a piece; the heap's size."""
    merge = _merge(model, symbols[left], symbols[right])
    if merge == ABSENT:
        return size
    pair, at = merge >> _RANK << _RANK | np.uint64(left), size
    while at > 0 and heap[(at - 1) // 2] > pair:
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = pair
    return size + 1


@compiled
def _sift_down(heap: np.ndarray, size: int, pair: np.uint64) -> None:
    """Put the pair into the hole at the top of a heap that will have `size`."""
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if pair <= heap[child]:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = pair
