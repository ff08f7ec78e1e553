"""The pieces of a vocabulary as a double-array trie: Aoe 1989, "An Efficient Digital Search Algorithm"."""

import numpy as np

from llm.tokenizer.encoder.compiled import allocating, compiled

BASE, PARENT, VALUE = range(3)
"""Columns of a trie, (states, 3) int32. The child of state s by a byte is the state BASE of s + byte, if that
state's PARENT is s. VALUE is -1 where no key ends. The root is state 0.
"""
_FREE = -1
_PATIENCE = 64  # places tried before the crowded ones are given up for good


def double_array(keys: list[tuple[bytes, int]]) -> np.ndarray:
    """A trie of different keys with their values ≥ 0."""
    children: list[dict[int, int]] = [{}]
    values = [-1]
    for key, value in keys:
        node = 0
        for byte in key:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                values.append(-1)
            node = children[node][byte]
        values[node] = value
    first = np.cumsum([0, *map(len, children)])
    labels = np.array([byte for node in children for byte in sorted(node)], dtype=np.int32)
    nodes = np.array([node[byte] for node in children for byte in sorted(node)], dtype=np.int32)
    room = 2 * len(children) + 1024
    while True:
        trie = np.full((room, 3), _FREE, dtype=np.int32)
        highest = _place(first, labels, nodes, np.array(values, dtype=np.int32), trie)
        if highest >= 0:
            return trie[: highest + 257].copy()  # so that any byte can be added to the highest base
        room *= 2


@allocating
def _place(
    first: np.ndarray, labels: np.ndarray, nodes: np.ndarray, values: np.ndarray, trie: np.ndarray
) -> int:
    """Give each node a state, its children's where all of them fit; the highest state, -1 without room."""
    state_of = np.zeros(len(values), dtype=np.int32)
    trie[0, PARENT], trie[0, VALUE] = 0, values[0]
    lowest_free = highest = 1
    for node in range(len(values)):
        state = state_of[node]
        begin, end = first[node], first[node + 1]
        trie[state, BASE] = 0
        if begin == end:
            continue
        while trie[lowest_free, PARENT] != _FREE:
            lowest_free += 1
        base, tries = max(lowest_free - labels[begin], 1), 0
        if base + 256 > len(trie):
            return -1
        while not _fits(trie, base, labels[begin:end]):
            base, tries = base + 1, tries + 1
            if base + 256 > len(trie):
                return -1
        if tries > _PATIENCE:
            lowest_free = base + labels[begin]
        trie[state, BASE] = base
        for row in range(begin, end):
            child = base + labels[row]
            trie[child, PARENT], trie[child, VALUE] = state, values[nodes[row]]
            state_of[nodes[row]] = child
            highest = max(highest, child)
    return highest


@compiled
def _fits(trie: np.ndarray, base: int, labels: np.ndarray) -> bool:
    at = 0
    while at < len(labels) and trie[base + labels[at], PARENT] == _FREE:
        at += 1
    return at == len(labels)
