"""Every source keeps within one sample of its exact share at every moment, through all stages."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.mixture import LONGEST_PERIOD, Mixture, period, reduced


@st.composite
def schedules(draw):
    sources = draw(st.integers(1, 6))
    weights = st.lists(st.integers(0, 12), min_size=sources, max_size=sources).filter(any)
    gaps = draw(st.lists(st.integers(1, 150), max_size=3))
    begins = [0, *np.cumsum(gaps).tolist()]
    return [(after, draw(weights)) for after in begins]


@settings(max_examples=150, deadline=None)
@given(schedules())
def test_within_one_sample_of_the_exact_share_at_every_prefix(stages):
    mixture = Mixture(stages)
    samples = int(mixture.starts[-1]) + 2 * sum(stages[-1][1]) + 7
    source, nth = mixture.locate(np.arange(samples))

    exact, taken = [Fraction(0)] * mixture.sources, [0] * mixture.sources
    for i in range(samples):
        assert nth[i] == taken[source[i]], "samples of a source follow one another"
        stage = max(number for number, start in enumerate(mixture.starts) if start <= i)
        weights = stages[stage][1]
        exact = [share + Fraction(weight, sum(weights)) for share, weight in zip(exact, weights, strict=True)]
        taken[source[i]] += 1
        sources = sum(weight > 0 for weight in weights)
        bound = 1 - Fraction(1, 2 * sources - 2) if sources > 1 else 0
        assert all(abs(t - e) <= bound for t, e in zip(taken, exact, strict=True))
        assert mixture.counts(i + 1).tolist() == taken


@given(schedules())
def test_a_stage_begins_with_the_first_whole_period_that_is_not_too_early(stages):
    starts = Mixture(stages).starts
    for number in range(1, len(stages)):
        length = sum(reduced(stages[number - 1][1]))
        earliest = max(stages[number][0], starts[number - 1] + 1)
        assert starts[number] >= earliest > starts[number] - length
        assert (starts[number] - starts[number - 1]) % length == 0


@given(schedules(), st.integers(0, 10**15))
def test_far_into_the_stream_it_goes_on_in_periods(stages, far):
    mixture = Mixture(stages)
    weights = np.array(reduced(stages[-1][1]))
    start, length = int(mixture.starts[-1]), int(weights.sum())
    source, nth = mixture.locate(start + far % length)
    later = mixture.locate(start + far)
    assert later[0] == source
    assert later[1] == nth + far // length * weights[source]
    assert mixture.counts(start + far)[source] == later[1]


def test_a_period_of_the_longest_kind():
    table, _ = period([9_973, 20, 7])
    assert np.bincount(table).tolist() == [9_973, 20, 7]
    assert len(table) == LONGEST_PERIOD
    gaps = np.diff(np.flatnonzero(table == 2))
    assert gaps.max() < 2 * LONGEST_PERIOD / 7, "the rare source is spread out"


def test_what_is_no_mixture():
    with pytest.raises(ValueError, match="more than 10000: round them"):
        Mixture([(0, [10_000, 1])])
    with pytest.raises(ValueError, match="stage 2 of the mixture has the weights"):
        Mixture([(0, [1, 1]), (5, [0, 0])])
    with pytest.raises(ValueError, match="ever later"):
        Mixture([(0, [1]), (8, [1]), (8, [1])])
