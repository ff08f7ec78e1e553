"""The order looks random by every test that could see its construction: blocks, windows, the short block.

Seeds are fixed, so that each test gives one p-value for good; a sound order would fail one in ten thousand.
"""

import numpy as np
import pytest
from scipy import stats

from llm.data.order import Order
from llm.data.permutation import keyed, permute

SEEDS = 2000
SMALLEST_P = 1e-4
BLOCK, WINDOW = 8, 4
WINDOWS = 10
SAMPLES = WINDOWS * BLOCK * WINDOW - 5
SHORT_BLOCK = SAMPLES - 3
"""Where the last block begins: it has three samples, and its window so many fewer."""


@pytest.fixture(scope="module")
def places() -> np.ndarray:
    """(SEEDS, SAMPLES): where each sample stands in the first epoch of each seed's order."""
    orders = (Order([SAMPLES], 1, seed, BLOCK, WINDOW) for seed in range(SEEDS))
    return np.stack([np.argsort(order.locate(np.arange(SAMPLES))[1]) for order in orders])


def uniform_p(values: np.ndarray, bins: int) -> float:
    """Of whole numbers below SAMPLES, cut into bins as equal as can be."""
    borders = np.linspace(0, SAMPLES, bins + 1).astype(int)
    counts = np.histogram(values, bins=borders - 0.5)[0]
    return stats.chisquare(counts, np.diff(borders) / SAMPLES * len(values)).pvalue


@pytest.mark.parametrize("sample", [0, 1, BLOCK - 1, BLOCK, SAMPLES // 2, SHORT_BLOCK - 1])
def test_a_sample_may_stand_anywhere(places, sample):
    assert uniform_p(places[:, sample], bins=63) > SMALLEST_P


@pytest.mark.parametrize("sample", range(SHORT_BLOCK, SAMPLES))
def test_a_sample_of_the_short_block_may_be_in_any_window(places, sample):
    windows = np.bincount(places[:, sample] // (BLOCK * WINDOW), minlength=WINDOWS)
    assert stats.chisquare(windows).pvalue > SMALLEST_P


def test_all_samples_together(places):
    """Over samples, the p-values are uniform themselves: none is too good, either."""
    p = [uniform_p(places[:, sample], bins=21) for sample in range(SHORT_BLOCK)]
    assert stats.kstest(p, "uniform").pvalue > SMALLEST_P


@pytest.mark.parametrize("gap", [BLOCK, 2 * BLOCK + 1, SAMPLES // 2])
def test_samples_of_different_blocks_stand_independently(places, gap):
    first, second = places[:, 3], places[:, 3 + gap]
    table = np.histogram2d(first, second, bins=6)[0]
    assert stats.chi2_contingency(table).pvalue > SMALLEST_P


def test_neighbours_of_a_block_come_in_either_order(places):
    earlier = (places[:, 0] < places[:, 1]).sum()
    assert stats.binomtest(int(earlier), SEEDS).pvalue > SMALLEST_P


def test_place_in_the_block_says_nothing_of_place_in_the_window(places):
    """Block boundaries leave no trace in the order within a window."""
    whole = SAMPLES - SAMPLES % BLOCK
    in_block = np.tile(np.arange(whole) % BLOCK, SEEDS)
    in_window = (places[:, :whole] % (BLOCK * WINDOW)).reshape(-1)
    table = np.histogram2d(in_block, in_window, bins=(BLOCK, 16))[0]
    assert stats.chi2_contingency(table).pvalue > SMALLEST_P


@pytest.mark.parametrize("lag", [1, 2, BLOCK, BLOCK * WINDOW])
def test_no_serial_correlation(lag):
    order = Order([100_000], 1, seed=5, block_samples=1, window_blocks=100_000)
    samples = order.locate(np.arange(100_000))[1].astype(float)
    correlation = np.corrcoef(samples[:-lag], samples[lag:])[0, 1]
    assert 2 * stats.norm.sf(abs(correlation) * np.sqrt(len(samples) - lag)) > SMALLEST_P


def test_windows_one_after_the_other_are_shuffled_differently():
    """The order within a window is no function of the window before."""
    n = 64
    order = Order([100 * n], 1, seed=6, block_samples=n, window_blocks=1)
    ranks = order.locate(np.arange(100 * n))[1].reshape(100, n) % n
    correlation = np.corrcoef(ranks)[np.triu_indices(100, 1)]
    assert stats.kstest(correlation * np.sqrt(n - 1), "norm").pvalue > SMALLEST_P


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 15, 16, 17, 31, 63, 64, 65])
def test_small_permutations_send_anything_anywhere(n):
    """At sizes around the powers of 4, where cycle-walking is longest and shortest."""
    keys = np.array([keyed("statistics", n, number) for number in range(6000)], dtype=np.uint64)
    table = np.zeros((n, n))
    for x in range(n):
        sent = permute(np.full(len(keys), x, np.uint64), np.full(len(keys), n, np.uint64), keys)
        table[x] = np.bincount(sent.astype(np.int64), minlength=n)
    # Rows and columns both add up to the number of keys: (n - 1)**2 degrees of freedom.
    statistic = ((table - len(keys) / n) ** 2 / (len(keys) / n)).sum()
    assert stats.chi2.sf(statistic * (n - 1) / n, (n - 1) ** 2) > SMALLEST_P
