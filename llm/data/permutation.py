"""A keyed permutation of range(n) for any n below 2**62, computed point by point.

A balanced Feistel network permutes the numbers of an even count of bits, fewer than 4 n of them; whatever
falls outside range(n) goes through again until it falls inside (cycle-walking: Black and Rogaway 2002,
"Ciphers with Arbitrary Finite Domains"), which keeps it a bijection. The round function is the finaliser of
SplitMix64, so that every bit of its input reaches every bit of its output.
"""

import hashlib

import numpy as np

ROUNDS = 8  # the smallest domains have halves of one bit, which four rounds leave far from uniform
GOLDEN = 0x9E3779B97F4A7C15

_U64 = np.uint64
_BELOW_2_64 = 2**64 - 1
_ROUND_CONSTANTS = np.array([[(r + 1) * GOLDEN % 2**64] for r in range(ROUNDS)], dtype=_U64)
_POWERS_OF_4 = np.array([4**h for h in range(1, 32)], dtype=_U64)


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, elementwise on uint64 (Steele et al. 2014)."""
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))


def keyed(*parts: int | str) -> int:
    """A 64-bit key from a seed and what it is for; the same on every machine and version."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def shuffled(n: int, key: int) -> np.ndarray:
    """range(n) in the order of its permutation under `key`: (n,) int64."""
    domain, keys = np.full(n, n, dtype=_U64), np.full(n, key, dtype=_U64)
    return permute(np.arange(n, dtype=_U64), domain, keys).astype(np.int64)


def permute(x: np.ndarray, n: np.ndarray, key: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Where the permutation of range(n) under `key` sends x; elementwise on uint64 arrays of one shape."""
    if x.size == 1:
        one = permute_one(int(x.item()), int(n.item()), int(key.item()), inverse)
        return np.full(x.shape, one, dtype=_U64)
    half = _half_bits(n)
    mask = (_U64(1) << half) - _U64(1)
    round_keys = mix(key + _ROUND_CONSTANTS)
    y = _feistel(x, half, mask, round_keys, inverse)
    outside = np.flatnonzero(y >= n)
    while outside.size:
        y[outside] = _feistel(y[outside], half[outside], mask[outside], round_keys[:, outside], inverse)
        outside = outside[y[outside] >= n[outside]]
    return y


def permute_one(x: int, n: int, key: int, inverse: bool = False) -> int:
    """`permute` of one number: without arrays, whose every operation costs more than a whole round here."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    round_keys = [_mix_one(key + (r + 1) * GOLDEN) for r in range(ROUNDS)]
    while True:
        left, right = x >> half, x & mask
        for round_key in reversed(round_keys) if inverse else round_keys:
            if inverse:
                left, right = right ^ (_mix_one(left ^ round_key) & mask), left
            else:
                left, right = right, left ^ (_mix_one(right ^ round_key) & mask)
        x = (left << half) | right
        if x < n:
            return x


def _mix_one(x: int) -> int:
    """`mix` of one number, which need not be below 2**64."""
    x &= _BELOW_2_64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _BELOW_2_64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _BELOW_2_64
    return x ^ (x >> 31)


def _feistel(
    x: np.ndarray, half: np.ndarray, mask: np.ndarray, round_keys: np.ndarray, inverse: bool
) -> np.ndarray:
    left, right = x >> half, x & mask
    for round_key in round_keys[::-1] if inverse else round_keys:
        if inverse:
            left, right = right ^ (mix(left ^ round_key) & mask), left
        else:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
    return (left << half) | right


def _half_bits(n: np.ndarray) -> np.ndarray:
    """h with 4**(h-1) < n <= 4**h, at least 1, in integers: float log2 is wrong near powers beyond 2**53."""
    return np.searchsorted(_POWERS_OF_4, n).astype(_U64) + _U64(1)
