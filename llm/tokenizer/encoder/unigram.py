"""One word by the unigram model: the path of pieces with the greatest sum of scores (log-probabilities), by
Viterbi's algorithm. Kudo 2018, https://arxiv.org/abs/1804.10959.

SentencePiece adds the scores up in float32 from the beginning of a text, so that how a word is cut may depend
on the score S before it: only where two paths come so close that rounding decides. With k pieces at most on a
path to a place within the word, the sums of two paths that differ by d come out in their true order if

    d > k u (2 |S| + 2 |r| + d)        u = 2**-24, float32's rounding; r: the score of the word's best path

So each word has a limit for |S|, below which its path is what exact numbers give, and is kept. Beyond it, the
word is cut with SentencePiece's own sums. SentencePiece sets S to 0 where it is beyond 100,000; the limit is
also such that this happens at no place within the word.
"""

from typing import NamedTuple

import numpy as np
from sentencepiece import sentencepiece_model_pb2 as proto

from llm.tokenizer.encoder.characters import character_bytes
from llm.tokenizer.encoder.compiled import compiled
from llm.tokenizer.encoder.trie import BASE, PARENT, VALUE, double_array
from llm.tokenizer.encoder.vocabulary import Vocabulary, normal_pieces, vocabulary
from llm.tokenizer.encoder.word_table import END, LIMIT, SIZE, WordTable, copy_ids, set_ids

_UNKNOWN_PENALTY = 10.0  # SentencePiece's: below the lowest score
_ROUNDING = 2.0**-24
_SAFETY = 0.99  # for what the bound leaves out: products of roundings, and float64's own
_RESET = 1e5  # SentencePiece's: a score this far from 0 becomes 0
_UNKNOWN = -1


class UnigramModel(NamedTuple):
    """
    trie: of the pieces' bytes, to their ids.
    scores: (ids,) float32. An unknown character is spelled in bytes: the first of them has its score, the
        others 0, so that scores can be added up over ids.
    unknown_score: float32.
    """

    vocabulary: Vocabulary
    trie: np.ndarray
    scores: np.ndarray
    unknown_score: np.float32


def unigram_model(spec: proto.ModelProto) -> UnigramModel:
    words = vocabulary(spec)
    pieces = normal_pieces(spec)
    scores = np.zeros(len(spec.pieces), dtype=np.float32)
    for _, id in pieces:
        scores[id] = spec.pieces[id].score
    unknown_score = np.float32(min(scores[id] for _, id in pieces) - np.float32(_UNKNOWN_PENALTY))
    leads = [byte for byte in range(256) if not 0x80 <= byte < 0xC0]
    scores[words.byte_ids[leads]] = unknown_score
    trie = double_array([(text.encode(), id) for text, id in pieces])
    return UnigramModel(words, trie, scores, unknown_score)


class Paths(NamedTuple):
    """The best path to each place of a word: its score, and of its last piece the beginning and the id.

    exact: float64, and rounded: float32, are the score; lead: by how much it is the best.
    """

    exact: np.ndarray
    rounded: np.ndarray
    lead: np.ndarray
    begins: np.ndarray
    ids: np.ndarray


def paths(longest_word: int) -> Paths:
    """Room for words of at most so many bytes."""
    places = longest_word + 1
    return Paths(
        np.empty(places, dtype=np.float64),
        np.empty(places, dtype=np.float32),
        np.empty(places, dtype=np.float64),
        np.empty(places, dtype=np.int64),
        np.empty(places, dtype=np.int32),
    )


@compiled
def encode_new_words(
    text: np.ndarray,
    words: np.ndarray,
    new: np.ndarray,
    table: WordTable,
    model: UnigramModel,
    path: Paths,
    ids: np.ndarray,
) -> None:
    """Give ids and limits to the words of the rows `new`. `path` and `ids` have room for the longest."""
    for row in new:
        number, start = words[row]
        end = start + np.int64(table.words[number, SIZE])
        table.words[number, LIMIT] = np.uint64(_exact_path(text, start, end, model, path))
        set_ids(table, number, ids, _spell(text, start, end, model, path, ids, 0))


@compiled
def put_together(
    text: np.ndarray,
    words: np.ndarray,
    table: WordTable,
    model: UnigramModel,
    path: Paths,
    eos_id: int,
    score: np.float32,
    out: np.ndarray,
    n: int,
    ends: np.ndarray,
    document: int,
) -> tuple[int, np.float32]:
    """Write the ids of all words to `out` from n on, and where documents end.

    score: of the document's words before these. Returns where the ids end, and the score after them.
    """
    for row in range(len(words)):
        number, start = words[row]
        if number == END:
            if eos_id >= 0:
                out[n] = eos_id
                n += 1
            ends[document] = n
            document += 1
            score = np.float32(0.0)
        elif abs(score) < np.float64(table.words[number, LIMIT]):
            begin, n = n, copy_ids(table, number, out, n)
            for i in range(begin, n):
                score += model.scores[out[i]]
        else:
            end = start + np.int64(table.words[number, SIZE])
            score = _sentencepiece_path(text, start, end, model, score, path)
            n = _spell(text, start, end, model, path, out, n)
    return n, score


@compiled
def _sentencepiece_path(
    text: np.ndarray, start: int, end: int, model: UnigramModel, score: np.float32, path: Paths
) -> np.float32:
    """The path that SentencePiece takes when the score is `score` before the word; the score after it."""
    path.begins[: end - start + 1] = -1
    path.rounded[0] = score
    at = reached = start
    while at < end:
        here = path.rounded[at - start]
        if abs(here) > _RESET:
            for place in range(at - start, reached - start + 1):
                path.rounded[place] -= here
            here = np.float32(0.0)
        length = character_bytes(text[at])
        has_single = False
        state, to = 0, at
        while to < end:
            child = model.trie[state, BASE] + text[to]
            if model.trie[child, PARENT] != state:
                break
            state, to = child, to + 1
            id = model.trie[state, VALUE]
            if id >= 0:
                _offer_rounded(path, to - start, at - start, id, model.scores[id] + here)
                reached = max(reached, to)
                has_single = has_single or to - at == length
        if not has_single:
            sum = model.unknown_score + here
            if _is_space_symbol(text, at, end):
                sum = np.float32(0.0)  # what follows is a text of its own
            _offer_rounded(path, at - start + length, at - start, _UNKNOWN, sum)
            reached = max(reached, at + length)
        at += length
    return path.rounded[end - start]


@compiled
def _offer_rounded(path: Paths, to: int, begin: int, id: int, sum: np.float32) -> None:
    if path.begins[to] == -1 or sum > path.rounded[to]:
        path.rounded[to], path.begins[to], path.ids[to] = sum, begin, id


@compiled
def _exact_path(text: np.ndarray, start: int, end: int, model: UnigramModel, path: Paths) -> float:
    """The path by exact sums, and the limit of |S| below which SentencePiece takes it, too."""
    path.begins[: end - start + 1] = -1
    path.exact[0] = 0.0
    at, characters, deepest = start, 0, 0.0
    while at < end:
        here = path.exact[at - start]
        deepest = min(deepest, here)
        length = character_bytes(text[at])
        has_single = False
        state, to = 0, at
        while to < end:
            child = model.trie[state, BASE] + text[to]
            if model.trie[child, PARENT] != state:
                break
            state, to = child, to + 1
            id = model.trie[state, VALUE]
            if id >= 0:
                _offer_exact(path, to - start, at - start, id, here + np.float64(model.scores[id]))
                has_single = has_single or to - at == length
        if not has_single:
            _offer_exact(
                path, at - start + length, at - start, _UNKNOWN, here + np.float64(model.unknown_score)
            )
            if _is_space_symbol(text, at, end):
                path.lead[at - start + length] = 0.0  # the score begins anew: no limit holds
        at += length
        characters += 1
    lead, to = np.inf, end - start
    while to > 0:
        lead = min(lead, path.lead[to])
        to = path.begins[to]
    errors = 2.0 * characters * _ROUNDING
    if errors > 0.5:
        return 0.0
    limit = _SAFETY * lead * (1 - errors) / errors + path.exact[end - start]  # which is negative
    return max(min(limit, _SAFETY * _RESET * (1 - errors) + deepest), 0.0)


@compiled
def _offer_exact(path: Paths, to: int, begin: int, id: int, sum: float) -> None:
    if path.begins[to] == -1:
        path.lead[to] = np.inf
    elif sum > path.exact[to]:
        path.lead[to] = sum - path.exact[to]
    else:
        path.lead[to] = min(path.lead[to], path.exact[to] - sum)
        return
    path.exact[to], path.begins[to], path.ids[to] = sum, begin, id


@compiled
def _is_space_symbol(text: np.ndarray, at: int, end: int) -> bool:
    return at + 3 <= end and text[at] == 0xE2 and text[at + 1] == 0x96 and text[at + 2] == 0x81


@compiled
def _spell(
    text: np.ndarray, start: int, end: int, model: UnigramModel, path: Paths, ids: np.ndarray, n: int
) -> int:
    """Write the ids of the path from n on; where they end."""
    to, count = end - start, 0
    while to > 0:
        count += 1 if path.ids[to] != _UNKNOWN else to - path.begins[to]
        to = path.begins[to]
    to, i = end - start, n + count
    while to > 0:
        begin = path.begins[to]
        if path.ids[to] != _UNKNOWN:
            i -= 1
            ids[i] = path.ids[to]
        else:
            for at in range(start + to - 1, start + begin - 1, -1):
                i -= 1
                ids[i] = model.vocabulary.byte_ids[text[at]]
        to = begin
    return n + count
