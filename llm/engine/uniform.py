"""Uniform numbers as a pure function of (seed, position): counter-based, so that no state is kept."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One float64 in (0, 1) for each pair of uint64 seed and position.

    splitmix64 (Steele et al., 2014), once over the seed and once over the result plus the position, keeping
    the upper 32 bits: (h + 1/2) / 2^32 is never 0 or 1, and times a sum it never rounds up to the sum.
    """
    with np.errstate(over="ignore"):
        mixed = _splitmix64(_splitmix64(seeds.astype(np.uint64)) + positions.astype(np.uint64))
    return ((mixed >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32


def _splitmix64(x: np.ndarray) -> np.ndarray:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
