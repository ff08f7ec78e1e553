"""Span corruption against T5's algorithm for one row, and against what it promises of any row."""

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm.data.span_corruption import SpanCorruption, corrupt_spans
from tests.unit.llm.data.reference_draws import reference_draws

SMALLEST_P = 1e-4
TEXT_IDS, FIRST_SENTINEL, EOS = 10_000, 10_999, 3

densities = st.floats(0.001, 0.999)
corruptions = st.builds(SpanCorruption, densities, st.floats(1, 20))


def texts(samples, raw_len, seed=0):
    return np.random.default_rng(seed).integers(0, TEXT_IDS, (samples, raw_len))


def views(rows, first_sample=0, corruption=SpanCorruption(), seed=1):  # noqa: B008 frozen
    return corrupt_spans(
        rows, first_sample, corruption, seed=seed, first_sentinel_id=FIRST_SENTINEL, eos_id=EOS
    )


# The reference follows `random_spans_noise_mask` and `noise_span_to_unique_sentinel` of T5's code, a span at
# a time. T5 fails where there are more spans than tokens of text; ours has fewer spans there.


def reference_segments(draws, items, segments):
    """Mark segments - 1 of the items after the first, by a shuffle, as the first of a segment."""
    places = sorted(range(items - 1), key=draws.__getitem__)
    begins = sorted(place + 1 for place in places[: segments - 1])
    return [end - begin for begin, end in zip([0, *begins], [*begins, items], strict=True)]


def reference_views(row, sample, corruption, seed):
    noise = min(max(int(np.round(len(row) * corruption.noise_density)), 1), len(row) - 1)
    spans = max(int(np.round(noise / corruption.mean_span_length)), 1)
    text = len(row) - noise
    spans = min(spans, text)
    text_lengths = reference_segments(reference_draws(seed, "text parts", sample, text - 1), text, spans)
    noise_lengths = reference_segments(reference_draws(seed, "noise parts", sample, noise - 1), noise, spans)
    inputs, targets, at = [], [], 0
    for k in range(spans):
        inputs += row[at : at + text_lengths[k]]
        at += text_lengths[k]
        inputs += [FIRST_SENTINEL - k]
        targets += [FIRST_SENTINEL - k]
        targets += row[at : at + noise_lengths[k]]
        at += noise_lengths[k]
    return [*inputs, EOS], [*targets, EOS]


@given(corruptions, st.integers(2, 80), st.integers(0, 2**40), st.integers(0, 2**70))
@settings(max_examples=150, deadline=None)
def test_equals_the_reference_row_by_row(corruption, raw_len, first_sample, seed):
    rows = texts(3, raw_len)
    inputs, targets = views(rows, first_sample, corruption, seed)
    assert inputs.dtype == targets.dtype == np.int64
    for i, row in enumerate(rows.tolist()):
        expected = reference_views(row, first_sample + i, corruption, seed)
        assert (inputs[i].tolist(), targets[i].tolist()) == expected


def put_together(inputs, targets):
    """The text, with each sentinel of the inputs replaced by what follows it in the targets."""
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token >= TEXT_IDS:
            spans[token] = []
        else:
            spans[min(spans)].append(token)
    return [t for token in inputs[:-1] for t in (spans[token] if token >= TEXT_IDS else [token])]


@given(corruptions, st.integers(2, 600), st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_inputs_and_targets_together_are_the_text(corruption, raw_len, first_sample):
    rows = texts(4, raw_len, first_sample)
    for row, inputs, targets in zip(rows, *views(rows, first_sample, corruption), strict=True):
        assert put_together(inputs.tolist(), targets.tolist()) == row.tolist()
        assert inputs[-1] == targets[-1] == EOS
        sentinels = [FIRST_SENTINEL - k for k in range(corruption.sentinels(raw_len))]
        assert inputs[inputs >= TEXT_IDS].tolist() == sentinels
        assert targets[targets >= TEXT_IDS].tolist() == sentinels
        held = np.diff(np.flatnonzero(np.append(targets[:-1], TEXT_IDS) >= TEXT_IDS))
        assert held.min() >= 2, "a span of noise is never empty"
        between = np.diff(np.flatnonzero(inputs >= TEXT_IDS), prepend=-1)
        assert between.min() >= 2, "spans of noise never touch"


@pytest.mark.parametrize("density", [0.01, 0.15, 0.3, 0.5, 0.85, 0.99])
@pytest.mark.parametrize("mean_span_length", [1.0, 3.0, 8.5])
def test_lengths_are_as_announced_and_their_inverse_is_the_longest_text(density, mean_span_length):
    corruption = SpanCorruption(density, mean_span_length)
    announced = {raw_len: corruption.lengths(raw_len) for raw_len in range(2, 601)}
    for raw_len, lengths in announced.items():
        inputs, targets = views(texts(2, raw_len), 0, corruption)
        assert (inputs.shape, targets.shape) == ((2, lengths[0]), (2, lengths[1]))
    for input_len in range(3, announced[600][0]):
        fitting = [raw_len for raw_len, lengths in announced.items() if lengths[0] <= input_len]
        assert corruption.raw_len(input_len) == max(fitting)


def test_lengths_of_t5():
    """What `random_spans_helper` of its code makes of inputs of 512 (Raffel et al. 2020, §3.1.2)."""
    assert SpanCorruption().raw_len(512) == 568
    assert SpanCorruption().lengths(568) == (512, 114)


@pytest.mark.parametrize(("noise", "spans", "text"), [(5, 2, 5), (6, 3, 4), (4, 4, 7), (7, 5, 5)])
def test_each_way_to_cut_is_equally_likely_and_text_is_cut_independently_of_noise(noise, spans, text):
    """All masks of `spans` spans that begin with text and end with noise, listed by brute force."""
    raw_len, samples = noise + text, 60_000
    corruption = SpanCorruption(noise / raw_len, noise / spans)
    inputs, _ = views(np.tile(np.arange(raw_len), (samples, 1)), 0, corruption, seed=11)
    seen = Counter(map(tuple, np.where(inputs < TEXT_IDS, inputs, -1)[:, :-1].tolist()))
    possible = []
    for kept in combinations(range(raw_len), text):
        left_out = [i for i in range(raw_len) if i not in kept]
        begins = [i for i in left_out if i - 1 not in left_out]
        if 0 in kept and raw_len - 1 in left_out and len(begins) == spans:
            possible.append(tuple(t if t in kept else -1 for t in range(raw_len) if t in kept or t in begins))
    assert len(possible) == comb(noise - 1, spans - 1) * comb(text - 1, spans - 1)
    assert seen.keys() == set(possible)
    assert stats.chisquare([seen[mask] for mask in possible]).pvalue > SMALLEST_P


def test_the_places_of_long_texts_are_cut_equally_often():
    """Lengths of 512: each of the 434 places within the text may be a cut, whatever its place."""
    rows = np.tile(np.arange(512), (4000, 1))
    inputs, _ = views(rows)
    places = np.zeros(434)
    for row in inputs:
        cuts = np.flatnonzero(row >= TEXT_IDS)[:-1] - np.arange(25)  # tokens of text before each
        places[cuts - 1] += 1
    statistic = ((places - 4000 * 25 / 434) ** 2 / (4000 * 25 / 434)).sum()
    # 25 cuts of 434 places without replacement: the variance of each is so much less than a Poisson's.
    assert SMALLEST_P < stats.chi2.sf(statistic * 433 / (434 - 25), 433) < 1 - SMALLEST_P


@given(st.integers(2, 200), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_a_row_does_not_depend_on_its_batch(raw_len, first_sample):
    rows = texts(7, raw_len)
    together = views(rows, first_sample)
    alone = [views(rows[i : i + 1], first_sample + i) for i in range(7)]
    for side in (0, 1):
        assert np.array_equal(together[side], np.concatenate([one[side] for one in alone]))
    assert [side.shape for side in views(rows[:0], first_sample)] == [(0, side.shape[1]) for side in together]


def test_another_seed_or_sample_has_other_holes():
    row = texts(1, 200)
    inputs = {views(row, sample, seed=seed)[0].tobytes() for sample in range(20) for seed in range(20)}
    assert len(inputs) == 400


@pytest.mark.parametrize("density", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_densities_are_refused(density):
    with pytest.raises(ValueError, match=f"noise density of {density}: it must lie between 0 and 1"):
        SpanCorruption(noise_density=density)


@pytest.mark.parametrize("length", [0.5, float("inf"), float("nan")])
def test_impossible_span_lengths_are_refused(length):
    with pytest.raises(ValueError, match=f"mean span length of {length}: it must be a number from 1 on"):
        SpanCorruption(mean_span_length=length)


def test_texts_and_inputs_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match="a text of 1 tokens cannot be corrupted"):
        views(texts(2, 1))
    with pytest.raises(ValueError, match="inputs of 2 tokens"):
        SpanCorruption().raw_len(2)
