"""Packing against best fit by its definition; batches: nothing lost, nothing cut, every step on its own."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm.data.best_fit import PackedConversationBatches, best_fit_decreasing

PAD = 0


def reference_rows(lengths, capacity):
    """Best-fit decreasing as it is told: for each item, longest first, look at all rows."""
    rooms, row_of = [], {}
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [row for row, room in enumerate(rooms) if room >= lengths[item]]
        if not fitting:
            fitting = [len(rooms)]
            rooms.append(capacity)
        row_of[item] = min(fitting, key=lambda row: (rooms[row], row))
        rooms[row_of[item]] -= lengths[item]
    return [row_of[item] for item in range(len(lengths))]


@st.composite
def lengths_and_capacity(draw):
    capacity = draw(st.integers(1, 120))
    return draw(st.lists(st.integers(1, capacity), max_size=200)), capacity


@given(lengths_and_capacity())
@settings(max_examples=300, deadline=None)
def test_is_best_fit_decreasing(problem):
    lengths, capacity = problem
    rows = best_fit_decreasing(np.array(lengths, dtype=np.int64), capacity)
    assert rows.dtype == np.int64
    assert rows.tolist() == reference_rows(lengths, capacity)
    assert np.bincount(rows, weights=lengths or None).max(initial=0) <= capacity


@given(st.lists(st.lists(st.integers(1, 99), max_size=8), min_size=1, max_size=60), st.randoms())
@settings(max_examples=100, deadline=None)
def test_rows_that_were_cut_up_take_at_most_eleven_ninths_as_many(cuts, random):
    """Full rows of 100, each cut at some places, so that the best packing is known (bound: Johnson 1974)."""
    pieces = [b - a for row in cuts for a, b in pairwise(sorted({0, 100, *row}))]
    random.shuffle(pieces)
    rows = best_fit_decreasing(np.array(pieces), 100)
    assert len(cuts) <= rows.max() + 1 <= 11 / 9 * len(cuts) + 4


def test_items_that_fit_no_row_are_refused():
    with pytest.raises(ValueError, match="item 1 is 65 long, rows take 1 to 64: leave it out"):
        best_fit_decreasing(np.array([64, 65, 66]), 64)
    with pytest.raises(ValueError, match="item 0 is 0 long"):
        best_fit_decreasing(np.array([0, 1]), 64)


# Examples of tokens that tell which example they are of, and at which place.


def examples(n=103, seed=0, longest=60):
    lengths = np.random.default_rng(seed).integers(2, longest, n)
    return [
        ([1 + i * 1000 + j for j in range(k)], [i % 2] + [0] * (k // 2 - 1) + [1] * (k - k // 2))
        for i, k in enumerate(lengths.tolist())
    ]


def batches(data, **options):
    settings = {"batch_size": 4, "max_seq_len": 64, "seed": 5, "pad_id": PAD, **options}
    return PackedConversationBatches(data, **settings)


def conversations(batch):
    """[(ids, loss mask)] of each row, cut where a conversation begins, without the padding."""
    rows = []
    for ids, loss_mask in zip(batch.ids, batch.loss_mask, strict=True):
        begins = [*np.flatnonzero(ids % 1000 == 1), np.count_nonzero(ids)]
        rows.append([(ids[a:b].tolist(), loss_mask[a:b].tolist()) for a, b in pairwise(begins)])
    return rows


def epoch_of(packed, epoch):
    n = packed.batches_per_epoch
    return [packed.batch(step) for step in range(epoch * n, (epoch + 1) * n)]


small_sets = st.builds(examples, st.integers(4, 150), st.integers(0, 10**6), st.sampled_from([5, 20, 40, 64]))


@given(small_sets, st.integers(1, 4), st.integers(0, 2**40))
@settings(max_examples=100, deadline=None)
def test_each_conversation_once_an_epoch_whole_and_alone(data, batch_size, seed):
    try:
        packed = batches(data, batch_size=batch_size, seed=seed)
    except ValueError:
        assert sum(len(ids) for ids, _ in data) <= 64 * (batch_size - 1), "fewer full rows than a batch has"
        return
    for epoch in range(4):
        seen = []
        for batch in epoch_of(packed, epoch):
            assert {x.shape for x in vars(batch).values()} == {(batch_size, 64)}
            assert (batch.ids.dtype, batch.loss_mask.dtype) == (np.int64, np.bool_)
            padding = batch.ids == PAD
            assert not batch.loss_mask[padding].any()
            assert (np.diff(padding.astype(int), axis=1) >= 0).all(), "padding is at the end"
            for row in conversations(batch):
                assert row, "no row is all padding"
                for ids, loss_mask in row:
                    i = ids[0] // 1000
                    assert ids == data[i][0]
                    assert loss_mask == [False, *map(bool, data[i][1][1:])]
                    seen.append(i)
        assert len(set(seen)) == len(seen)
        waiting = [len(ids) for i, (ids, _) in enumerate(data) if i not in set(seen)]
        # Rows that wait are fewer than a batch, and the few by which the packings of epochs differ.
        assert sum(waiting) <= 64 * (batch_size - 1 + 8)


def test_all_take_part_where_rows_are_a_multiple_of_the_batch():
    """Even in epochs that would pack into fewer rows than the first."""
    data = examples(400)
    packed = batches(data, batch_size=1)
    rows = packed.batches_per_epoch
    missed = Counter()
    for epoch in range(12):
        seen = {
            ids[0] // 1000
            for batch in epoch_of(packed, epoch)
            for row in conversations(batch)
            for ids, *_ in row
        }
        missed.update(set(range(400)) - seen)
    assert sum(missed.values()) < 12 * 400 / rows * 2, "at most the conversations of a row or two wait"
    assert max(missed.values(), default=0) <= 2, "and others in each epoch"


def test_rows_are_full():
    lengths = np.clip(np.exp(np.random.default_rng(3).normal(np.log(75), 0.8, 6000)), 4, 512).astype(int)
    packed = batches([([9] * n, [1] * n) for n in lengths.tolist()], max_seq_len=512, batch_size=8)
    filled = np.mean([batch.ids != PAD for batch in epoch_of(packed, 1)])
    assert filled > 0.985
    assert packed.batches_per_epoch == pytest.approx(lengths.sum() / 512 / 8, rel=0.02)


def companions(packed, epoch):
    """Pairs of conversations that share a row."""
    rows = [row for batch in epoch_of(packed, epoch) for row in conversations(batch)]
    members = [[ids[0] // 1000 for ids, *_ in row] for row in rows]
    return {frozenset((a, b)) for row in members for a in row for b in row if a != b}


def test_company_and_order_change_from_epoch_to_epoch():
    packed = batches(examples(800, longest=30))
    pairs = [companions(packed, epoch) for epoch in range(4)]
    for before, after in pairwise(pairs):
        assert len(before & after) < 0.2 * len(before)
    other = batches(examples(800, longest=30), seed=6)
    assert len(companions(other, 0) & pairs[0]) < 0.2 * len(pairs[0])


def test_rows_do_not_drift_from_long_to_short():
    """Packing opens the rows of the longest conversations first; training takes them in any order."""
    packed = batches(examples(2000))
    rows = [len(row) for batch in epoch_of(packed, 0) for row in conversations(batch)]
    correlation = np.corrcoef(rows[:-1], rows[1:])[0, 1]
    assert 2 * stats.norm.sf(abs(correlation) * np.sqrt(len(rows) - 1)) > 1e-4


def test_steps_are_pure():
    data = examples()
    run = batches(data)
    stream = [run.batch(step) for step in range(3 * run.batches_per_epoch)]
    for step in (len(stream) - 1, 3, len(stream) // 2, 0):
        again = batches(data).batch(step)
        for name, array in vars(again).items():
            assert np.array_equal(array, getattr(stream[step], name)), name


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_ranks_share_the_batch_in_equal_shapes(world_size, batch_size, step):
    packed = batches(examples(300), batch_size=batch_size)
    whole = packed.batch(step)
    parts = [packed.batch(step, rank, world_size) for rank in range(world_size)]
    for name, array in vars(whole).items():
        interleaved = np.stack([getattr(part, name) for part in parts], axis=1).reshape(-1, 64)
        assert np.array_equal(interleaved[:batch_size], array), name
        assert (interleaved[batch_size:] == 0).all(), "equal shapes by rows of padding"


def test_too_long_and_lossless_examples_are_left_out():
    data = [([1, 2, 3], [0, 0, 1])] * 40 + [([1] * 65, [1] * 65), ([1, 2], [0, 0])]
    packed = batches(data, batch_size=2)
    assert (len(packed), packed.too_long) == (40, 1)
    with pytest.raises(
        ValueError,
        match=r"40 conversations of at most 64 tokens pack into 4 rows, which .* \(1 are longer\)",
    ):
        batches(data, batch_size=5)
    for nothing in ([], [([1, 2], [0, 0])]):
        with pytest.raises(ValueError, match="0 conversations of at most 64 tokens pack into 0 rows"):
            batches(nothing, batch_size=1)
