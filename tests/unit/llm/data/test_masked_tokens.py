"""Masked tokens against a row-by-row reference, and against what BERT promises of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm.data.masked_tokens import IGNORE, mask_tokens
from llm.training import loss
from tests.unit.llm.data.reference_draws import reference_draws

SMALLEST_P = 1e-4
SPECIAL_IDS, VOCAB_SIZE, MASK = 6, 500, 500

rates = st.floats(0.001, 1)


def texts(samples, seq_len, seed=0, special=0.1):
    """Rows of which that part is special tokens."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(SPECIAL_IDS, VOCAB_SIZE, (samples, seq_len))
    return np.where(rng.random(rows.shape) < special, rng.integers(0, SPECIAL_IDS, rows.shape), rows)


def views(rows, first_sample=0, seed=1, **options):
    settings = {"mask_id": MASK, "special_ids": SPECIAL_IDS, "vocab_size": VOCAB_SIZE, **options}
    return mask_tokens(rows, first_sample, seed=seed, **settings)


def reference_views(row, sample, seed, mask_rate):
    ordinary = [i for i, token in enumerate(row) if token >= SPECIAL_IDS]
    places = reference_draws(seed, "masked places", sample, len(row))
    fates = reference_draws(seed, "mask or token", sample, len(row))
    inputs, targets = list(row), [-100] * len(row)
    for i in sorted(ordinary, key=places.__getitem__)[: round(mask_rate * len(ordinary))]:
        targets[i] = row[i]
        if fates[i] % 10 < 8:
            inputs[i] = MASK
        elif fates[i] % 10 == 8:
            inputs[i] = SPECIAL_IDS + fates[i] // 10 % (VOCAB_SIZE - SPECIAL_IDS)
    return inputs, targets


@given(rates, st.integers(0, 80), st.floats(0, 1), st.integers(0, 2**40), st.integers(0, 2**70))
@settings(max_examples=150, deadline=None)
def test_equals_the_reference_row_by_row(mask_rate, seq_len, special, first_sample, seed):
    rows = texts(3, seq_len, special=special)
    inputs, targets = views(rows, first_sample, seed, mask_rate=mask_rate)
    assert inputs.dtype == targets.dtype == np.int64
    for i, row in enumerate(rows.tolist()):
        expected = reference_views(row, first_sample + i, seed, mask_rate)
        assert (inputs[i].tolist(), targets[i].tolist()) == expected


@given(rates, st.integers(1, 600), st.floats(0, 1), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_the_text_is_in_the_targets_where_masked_and_in_the_inputs_elsewhere(
    mask_rate, seq_len, special, first_sample
):
    rows = texts(4, seq_len, first_sample, special)
    inputs, targets = views(rows, first_sample, mask_rate=mask_rate)
    masked = targets != IGNORE
    assert np.array_equal(np.where(masked, targets, inputs), rows)
    assert not (masked & (rows < SPECIAL_IDS)).any()
    assert (inputs[masked] >= SPECIAL_IDS).all(), "no special token is drawn"
    ordinary = (rows >= SPECIAL_IDS).sum(axis=1)
    assert masked.sum(axis=1).tolist() == [round(mask_rate * n) for n in ordinary.tolist()]


def test_ignored_targets_are_those_of_the_loss():
    assert IGNORE == loss.IGNORE


def test_all_ordinary_tokens_are_masked_equally_often():
    row = texts(1, 128, special=0.2)
    _, targets = views(np.repeat(row, 20_000, axis=0), mask_rate=0.3)
    ordinary = row[0] >= SPECIAL_IDS
    masked, n = round(0.3 * ordinary.sum()), ordinary.sum()
    counts = (targets != IGNORE).sum(axis=0)[ordinary]
    assert counts.sum() == 20_000 * masked
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    # `masked` of n places without replacement: the variance of each is so much less than a Poisson's.
    assert SMALLEST_P < stats.chi2.sf(statistic * (n - 1) / (n - masked), n - 1) < 1 - SMALLEST_P


def test_each_set_of_few_tokens_is_equally_likely():
    _, targets = views(np.full((50_000, 7), 9), mask_rate=3 / 7, seed=2)
    sets, counts = np.unique(targets != IGNORE, axis=0, return_counts=True)
    assert len(sets) == 35
    assert stats.chisquare(counts).pvalue > SMALLEST_P


def test_eight_in_ten_are_hidden_one_in_ten_is_any_token_and_one_stays():
    rows = np.full((3000, 512), 77)
    inputs, targets = views(rows)
    shown = inputs[targets != IGNORE]
    random = shown[(shown != MASK) & (shown != 77)]
    tokens = VOCAB_SIZE - SPECIAL_IDS
    found = [(shown == MASK).sum(), len(random), (shown == 77).sum()]
    drawn_itself = 0.1 / tokens
    expected = np.array([0.8, 0.1 - drawn_itself, 0.1 + drawn_itself]) * len(shown)
    assert stats.chisquare(found, expected).pvalue > SMALLEST_P
    counts = np.delete(np.bincount(random, minlength=VOCAB_SIZE), 77)[SPECIAL_IDS:]
    assert len(counts) == tokens - 1
    assert stats.chisquare(counts).pvalue > SMALLEST_P


def test_what_becomes_of_a_token_says_nothing_of_its_neighbour():
    inputs, _ = views(np.full((2000, 256), 77), mask_rate=1)
    fate = np.where(inputs == MASK, 0, np.where(inputs == 77, 1, 2))
    for lag in (1, 2, 128):
        table = np.histogram2d(fate[:, :-lag].ravel(), fate[:, lag:].ravel(), bins=3)[0]
        assert stats.chi2_contingency(table).pvalue > SMALLEST_P
    table = np.histogram2d(fate[:-1].ravel(), fate[1:].ravel(), bins=3)[0]
    assert stats.chi2_contingency(table).pvalue > SMALLEST_P


@given(st.integers(1, 200), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_a_row_does_not_depend_on_its_batch(seq_len, first_sample):
    rows = texts(7, seq_len)
    together = views(rows, first_sample)
    alone = [views(rows[i : i + 1], first_sample + i) for i in range(7)]
    for side in (0, 1):
        assert np.array_equal(together[side], np.concatenate([one[side] for one in alone]))
    assert [side.shape for side in views(rows[:0], first_sample)] == [(0, seq_len), (0, seq_len)]


def test_another_seed_or_sample_has_another_mask():
    row = texts(1, 200)
    targets = {views(row, sample, seed)[1].tobytes() for sample in range(20) for seed in range(20)}
    assert len(targets) == 400


def test_a_mask_id_among_the_tokens_and_impossible_rates_are_refused():
    rows = texts(2, 10)
    assert (views(rows, mask_id=5, mask_rate=1)[0] == 5).any()
    for mask_id in (SPECIAL_IDS, VOCAB_SIZE - 1):
        with pytest.raises(ValueError, match=f"mask id {mask_id} is an ordinary token"):
            views(rows, mask_id=mask_id)
    for rate in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"a mask rate of {rate}"):
            views(rows, mask_rate=rate)
