"""Random numbers that belong to a sample of the global stream, whatever batch it is read in.

    draw_j of sample s = mix(mix(key + s · γ) + j · γ)        γ = 2⁶⁴ / golden ratio, modulo 2⁶⁴

which is SplitMix64 (Steele et al. 2014) with a start of its own for each sample. `mix` is one-to-one, so the
draws of a sample are all different, and their ranks are a permutation. Of a handful of places, that is more
even than the Feistel network of `llm.data.permutation`, which prefers some by several per cent.
"""

import numpy as np

from llm.data.permutation import GOLDEN, keyed, mix


def draws(seed: int, purpose: str, first_sample: int, samples: int, count: int) -> np.ndarray:
    """(samples, count) uint64: what samples first_sample … first_sample + samples - 1 draw for a purpose."""
    gamma, key = np.uint64(GOLDEN), np.uint64(keyed(seed, purpose))
    numbers = np.arange(first_sample, first_sample + samples, dtype=np.uint64)
    starts = mix(key + numbers * gamma)
    return mix(starts[:, None] + np.arange(count, dtype=np.uint64) * gamma)
