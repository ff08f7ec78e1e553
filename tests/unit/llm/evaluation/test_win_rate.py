"""The Wilson interval against SciPy, and the counts of a paired comparison."""

import pytest
from scipy.stats import binomtest

from llm.evaluation.win_rate import proportion, wilson_interval, win_rate


@pytest.mark.parametrize("successes, n", [(0, 1), (1, 1), (3, 10), (231, 400), (400, 400), (0, 10_000)])
def test_the_interval_is_scipys(successes, n):
    expected = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    low, high = wilson_interval(successes, n)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_of_nothing_nothing_is_known():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert proportion(0, 0).to_json() == {"value": 0.0, "low": 0.0, "high": 1.0, "n": 0}


def test_ties_count_half():
    rate = win_rate([3.0, 1.0, 2.0, 2.0], [1.0, 3.0, 2.0, 1.0])
    assert (rate.wins, rate.ties, rate.losses, rate.n) == (2, 1, 1, 4)
    assert rate.value == 0.625
    mirrored = win_rate([1.0, 3.0, 2.0, 1.0], [3.0, 1.0, 2.0, 2.0])
    assert mirrored.value == 1 - rate.value
    assert mirrored.low == pytest.approx(1 - rate.high)
    assert (rate.low, rate.high) == wilson_interval(2.5, 4)


def test_answers_must_come_in_pairs():
    with pytest.raises(ValueError, match="argument"):
        win_rate([1.0, 2.0], [1.0])
