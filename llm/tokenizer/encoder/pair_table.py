"""A hash table from pairs of integers to integers, as an array that compiled code reads."""

import numpy as np

from llm.tokenizer.encoder.compiled import compiled

ABSENT = np.uint64(2**64 - 1)
"""What `find` answers for a pair that is not there; also the key of an empty slot."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF, _ONE = np.uint64(32), np.uint64(1)


def pair_table(pairs: list[tuple[int, int]], values: list[int]) -> np.ndarray:
    """(slots, 2) uint64: key and value of each slot, at least half of them empty.

    pairs: different ones, of ints from 0 to 2**31 - 1. values: below 2**64 - 1.
    """
    slots = 1 << (2 * max(len(pairs), 1) - 1).bit_length()
    table = np.full((slots, 2), ABSENT, dtype=np.uint64)
    _fill(table, np.array(pairs, dtype=np.uint64).reshape(-1, 2), np.array(values, dtype=np.uint64))
    return table


@compiled
def find(table: np.ndarray, left: int, right: int) -> np.uint64:
    """The value of a pair, or ABSENT."""
    return table[_slot(table, np.uint64(left) << _HALF | np.uint64(right)), 1]


@compiled
def _slot(table: np.ndarray, key: np.uint64) -> np.uint64:
    """Where the key is, or would be put: the value of an empty slot is ABSENT."""
    last = np.uint64(table.shape[0] - 1)
    mixed = key * _GOLDEN
    slot = (mixed ^ mixed >> _HALF) & last
    while table[slot, 0] != key and table[slot, 0] != ABSENT:
        slot = (slot + _ONE) & last
    return slot


@compiled
def _fill(table: np.ndarray, pairs: np.ndarray, values: np.ndarray) -> None:
    for row in range(len(pairs)):
        key = pairs[row, 0] << _HALF | pairs[row, 1]
        slot = _slot(table, key)
        table[slot, 0], table[slot, 1] = key, values[row]
