"""The order against its definition in plain Python integers, and as a permutation of each epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.order import Order
from llm.data.permutation import keyed, permute, permute_one, shuffled

U64 = 2**64


# The reference: unbounded Python integers, one number at a time, epochs materialised where they are small.


def reference_mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % U64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % U64
    return x ^ (x >> 31)


def reference_permute(x, n, key):
    half = max(1, -(-(n - 1).bit_length() // 2))
    while True:
        left, right = divmod(x, 2**half)
        for r in range(8):
            round_key = reference_mix((key + (r + 1) * 0x9E3779B97F4A7C15) % U64)
            left, right = right, left ^ (reference_mix(right ^ round_key) % 2**half)
        x = left * 2**half + right
        if x < n:
            return x


def reference_epoch(n, epoch, seed, block, window):
    """All samples of an epoch by the definition: order blocks, cut windows, permute inside them."""
    blocks = [list(range(start, min(start + block, n))) for start in range(0, n, block)]
    key = keyed(seed, epoch, "blocks")
    ordered = [blocks[reference_permute(i, len(blocks), key)] for i in range(len(blocks))]
    samples = []
    for w, start in enumerate(range(0, len(ordered), window)):
        members = [sample for b in ordered[start : start + window] for sample in b]
        key = reference_mix((keyed(seed, epoch, "windows") + w * 0x9E3779B97F4A7C15) % U64)
        samples += [members[reference_permute(i, len(members), key)] for i in range(len(members))]
    return samples


small_orders = st.fixed_dictionaries(
    {
        "shard_tokens": st.lists(st.integers(0, 400), min_size=1, max_size=6).filter(lambda t: max(t) >= 5),
        "seq_len": st.integers(1, 5),
        "seed": st.integers(0, 2**70),
        "block_samples": st.integers(1, 9),
        "window_blocks": st.integers(1, 9),
    }
)


@given(small_orders, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_equals_the_definition_and_visits_each_sample_once(parameters, epoch):
    order = Order(**parameters)
    n, seq_len = order.samples_per_epoch, parameters["seq_len"]
    all_samples = [
        (k, j * seq_len)
        for k, tokens in enumerate(parameters["shard_tokens"])
        for j in range(tokens // seq_len)
    ]
    shard, offset = order.locate(np.arange(epoch * n, (epoch + 1) * n))
    visited = list(zip(shard.tolist(), offset.tolist(), strict=True))
    expected = reference_epoch(
        n, epoch, parameters["seed"], parameters["block_samples"], parameters["window_blocks"]
    )
    assert visited == [all_samples[i] for i in expected]
    assert sorted(visited) == all_samples


@given(small_orders, st.lists(st.integers(0, 3000), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_vectorised_equals_scalar_across_epochs(parameters, positions):
    order = Order(**parameters)
    shard, offset = order.locate(np.array(positions))
    one_by_one = [order.locate(i) for i in positions]
    assert shard.tolist() == [int(s) for s, _ in one_by_one]
    assert offset.tolist() == [int(o) for _, o in one_by_one]


@given(st.integers(1, 2**62), st.integers(0, U64 - 1), st.data())
@settings(max_examples=300, deadline=None)
def test_one_number_goes_where_it_goes_among_others(n, key, data):
    x = data.draw(st.integers(0, n - 1))
    inverse = data.draw(st.booleans())
    several = [np.full(2, each, np.uint64) for each in (x, n, key)]
    one = permute_one(x, n, key, inverse)
    assert permute(*several, inverse).tolist() == [one, one]
    assert permute_one(one, n, key, not inverse) == x


@given(st.integers(1, 300), st.integers(0, U64 - 1))
@settings(max_examples=200, deadline=None)
def test_permutation_and_its_inverse(n, key):
    x = np.arange(n, dtype=np.uint64)
    domain, keys = np.full(n, n, np.uint64), np.full(n, key, np.uint64)
    y = permute(x, domain, keys)
    assert sorted(y.tolist()) == list(range(n))
    assert np.array_equal(permute(y, domain, keys, inverse=True), x)


@pytest.mark.parametrize(
    "n", [2**32 - 1, 2**32, 2**32 + 1, 2**53 + 1, 4**27, 4**27 + 1, 10**15 + 37, 2**61 + 5, 2**62 - 1]
)
def test_huge_domains_agree_with_python_integers(n):
    x = np.array([0, 1, 12345, n // 3, 2 * n // 3, n - 2, n - 1], dtype=np.uint64)
    domain, keys = np.full(len(x), n, np.uint64), np.full(len(x), keyed("huge", n), np.uint64)
    y = permute(x, domain, keys)
    assert y.tolist() == [reference_permute(int(i), n, keyed("huge", n)) for i in x]
    assert np.array_equal(permute(y, domain, keys, inverse=True), x)


def test_a_corpus_beyond_2_to_the_32_samples():
    order = Order([2**45 + 17, 3 * 2**44 + 1, 5], seq_len=2048, seed=7, block_samples=100, window_blocks=50)
    n = order.samples_per_epoch
    assert n == 2**34 + 3 * 2**33
    window = np.arange(n - 3 * 5000, n)  # the last windows, the short block among the blocks of the epoch
    shard, offset = order.locate(np.concatenate([window, window + n]))
    first = set(zip(shard[: len(window)].tolist(), offset[: len(window)].tolist(), strict=True))
    assert len(first) == len(window)
    assert np.all(offset + 2048 <= np.array([2**45 + 17, 3 * 2**44 + 1, 5])[shard])
    assert np.unique(offset[: len(window)] // 2048 >> 32).size > 1  # high bits take part


def test_shuffle_is_close_to_uniform():
    # 24 permutations of 4, chi-squared with 23 degrees of freedom; 49.7 is its 0.999 quantile.
    draws = [tuple(shuffled(4, keyed("uniform", i)).tolist()) for i in range(4800)]
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    assert counts.size == 24
    assert np.sum((counts - 200) ** 2 / 200) < 49.7


def test_neighbours_are_scattered_and_epochs_and_seeds_differ():
    order, other = (Order([100_000], seq_len=1, seed=s) for s in (1, 2))
    n = order.samples_per_epoch
    epochs = [order.locate(np.arange(e * n, (e + 1) * n))[1] for e in (0, 1)]
    assert (
        np.abs(np.corrcoef(np.arange(n), epochs[0])[0, 1]) < 0.1
    )  # blocks, not samples, are the units of the far shuffle
    assert np.mean(epochs[0] == epochs[1]) < 0.001
    assert np.mean(epochs[0] == other.locate(np.arange(n))[1]) < 0.001


def test_reads_stay_within_a_window_of_blocks():
    order = Order([10_000], seq_len=1, seed=0, block_samples=10, window_blocks=5)
    _, offset = order.locate(np.arange(order.samples_per_epoch))
    for start in range(0, 10_000, 50):
        assert len(set((offset[start : start + 50] // 10).tolist())) == 5


def test_too_little_text_says_so():
    with pytest.raises(ValueError, match="longest of 2 shards has 9; lower seq_len"):
        Order([3, 9], seq_len=10, seed=0)
