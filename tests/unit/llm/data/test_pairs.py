"""Pairs in rows, token by token; batches: nothing lost, nothing cut, alike on any ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.pairs import IGNORE, PairBatches, lay_out, two_sided_best_fit

PAD, EOS = 0, 3


def pairs(n=60, seed=0, longest=(30, 12)):
    """Pairs of tokens that tell which pair and side they are of."""
    random = np.random.default_rng(seed)
    lengths = zip(*(random.integers(2, most, n).tolist() for most in longest), strict=True)
    return [
        ([1000 * i + j for j in range(4, a + 3)] + [EOS], [-1000 * i - j for j in range(4, b + 3)] + [EOS])
        for i, (a, b) in enumerate(lengths, 1)
    ]


def batches(data, **options):
    fixed = {"batch_size": 4, "max_input_len": 32, "max_target_len": 16, "packing": True, "seed": 5}
    return PairBatches(data, **fixed | options, pad_id=PAD, eos_id=EOS)


def test_rows_are_laid_out_side_by_side():
    rows = lay_out(
        [[([5, 6, EOS], [7, EOS]), ([8, EOS], [9, 10, EOS])], [([11, EOS], [12, EOS])], []], PAD, EOS
    )
    assert rows.inputs.tolist() == [[5, 6, EOS, 8, EOS], [11, EOS, PAD, PAD, PAD], [EOS, PAD, PAD, PAD, PAD]]
    assert rows.tokens.tolist() == [[PAD, 7, PAD, 9, 10], [PAD, 12, EOS, EOS, EOS], [PAD, EOS, EOS, EOS, EOS]]
    nothing = [IGNORE] * 5
    assert rows.targets.tolist() == [[7, EOS, 9, 10, EOS], [12, EOS, *nothing[2:]], nothing]


def reference_rows(lengths, capacity):
    """For each pair, the largest first, look at all rows; shares of one common denominator."""
    rooms, row_of = [], {}

    def shares(pair):
        return [pair[0] * capacity[1], pair[1] * capacity[0]]

    for item in sorted(range(len(lengths)), key=lambda i: (-max(shares(lengths[i])), i)):
        needed = shares(lengths[item])
        fitting = [row for row, room in enumerate(rooms) if room[0] >= needed[0] and room[1] >= needed[1]]
        if not fitting:
            fitting = [len(rooms)]
            rooms.append([capacity[0] * capacity[1]] * 2)
        row = min(fitting, key=lambda row: (sum(rooms[row]), row))
        row_of[item] = row
        rooms[row] = [room - need for room, need in zip(rooms[row], needed, strict=True)]
    return [row_of[item] for item in range(len(lengths))]


@given(st.data(), st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(max_examples=60, deadline=None)
def test_is_best_fit_on_both_sides(data, capacity):
    one = st.tuples(*(st.integers(1, most) for most in capacity))
    lengths = data.draw(st.lists(one, max_size=60))
    found = two_sided_best_fit(np.array(lengths, dtype=np.int64).reshape(-1, 2), np.array(capacity))
    assert found.tolist() == reference_rows(lengths, capacity)


def seen_in(batch):
    """The pairs of each row, by the tokens that they are made of."""
    rows = []
    for inputs, tokens, targets in zip(batch.inputs, batch.tokens, batch.targets, strict=True):
        read = [part.tolist() for part in np.split(inputs, np.flatnonzero(inputs == EOS) + 1)[:-1]]
        begins = np.flatnonzero(tokens == PAD)
        written = []
        for begin, end in zip(begins, [*begins[1:], len(tokens)], strict=True):
            target = targets[begin:end]
            target = target[target != IGNORE].tolist()
            assert tokens[begin + 1 : begin + len(target)].tolist() == target[:-1]
            written.append(target)
        rows.append(list(zip(read, written, strict=True)))
    return rows


@pytest.mark.parametrize("packing", [False, True])
def test_each_pair_at_most_once_an_epoch_whole_and_in_another_order(packing):
    data = pairs(200)
    made = batches(data, packing=packing, batch_size=3)
    epochs = []
    for epoch in range(2):
        first = epoch * made.batches_per_epoch
        rows = [row for step in range(made.batches_per_epoch) for row in seen_in(made.batch(first + step))]
        assert max(map(len, rows)) > 2 if packing else max(map(len, rows)) == 1
        epochs.append([pair for row in rows for pair in row])
        assert len({pair[0][0] for pair in epochs[-1]}) == len(epochs[-1])
        assert len(epochs[-1]) >= 200 - 3 * (8 if packing else 1)
        assert all(pair in data for pair in epochs[-1])
    assert epochs[0] != epochs[1]
    again = batches(data, packing=packing, batch_size=3).batch(made.batches_per_epoch + 1)
    assert seen_in(again) == seen_in(made.batch(made.batches_per_epoch + 1)), "a function of the step"


@pytest.mark.parametrize("packing", [False, True])
def test_ranks_share_the_batch_in_equal_shapes(packing):
    made = batches(pairs(), packing=packing, batch_size=5)
    whole, parts = made.batch(2), [made.batch(2, rank, 3) for rank in range(3)]
    assert {part.inputs.shape for part in parts} == {(2, whole.inputs.shape[1])}
    together = [row for part in parts for row in seen_in(part) if row[0][1]]
    assert sorted(together) == sorted(seen_in(whole))


def test_what_cannot_be_learned_is_left_out_and_counted():
    data = [([5, EOS], [6, EOS])] * 40 + [([5] * 33, [6, EOS]), ([5, EOS], [6] * 17), ([5, EOS], [])]
    made = batches(data, packing=False)
    assert (len(made), made.too_long, made.unanswered) == (40, 2, 1)
    assert made.mean_lengths == (2, 2)
    with pytest.raises(
        ValueError, match=r"40 pairs of at most 32 tokens to read and 16 to write pack into 8 rows"
    ):
        batches(data, batch_size=9)
    with pytest.raises(ValueError, match=r"0 pairs .* do not fill one batch of 4"):
        batches([], packing=False)
