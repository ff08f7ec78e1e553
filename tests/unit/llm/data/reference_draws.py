"""The draws of one sample by their definition, in unbounded Python integers."""

from llm.data.permutation import keyed

GAMMA = 0x9E3779B97F4A7C15


def mix(x):
    """SplitMix64's finaliser, of x modulo 2**64."""
    x %= 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def reference_draws(seed, purpose, sample, count):
    start = mix(keyed(seed, purpose) + sample * GAMMA)
    return [mix(start + j * GAMMA) for j in range(count)]
