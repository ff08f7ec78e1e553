"""Padded batches: nothing lost, little padding, and every step on its own."""

import numpy as np
import pytest

from llm.data.packing import ConversationBatches


def examples(n=103, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 60, n)
    return [
        (list(range(i * 100, i * 100 + k)), [0] * (k // 2) + [1] * (k - k // 2))
        for i, k in enumerate(lengths)
    ]


def batches(data, **options):
    settings = {"batch_size": 8, "max_seq_len": 64, "seed": 5, "pad_id": 0, **options}
    return ConversationBatches(data, **settings)


def test_each_example_at_most_once_an_epoch_and_whole():
    data = examples()
    packed = batches(data)
    assert packed.batches_per_epoch == 12
    by_first = {ids[0]: (ids, mask) for ids, mask in data}
    for epoch in range(2):
        seen = []
        for step in range(epoch * 12, (epoch + 1) * 12):
            batch = packed.batch(step)
            assert batch.ids.shape == batch.loss_mask.shape
            for ids, mask in zip(batch.ids.tolist(), batch.loss_mask.tolist(), strict=True):
                expected_ids, expected_mask = by_first[ids[0]]
                pad = len(ids) - len(expected_ids)
                assert ids == expected_ids + [0] * pad
                assert mask == [bool(m) for m in expected_mask] + [False] * pad
                seen.append(ids[0])
        assert len(set(seen)) == len(seen) == 96


def test_lengths_are_bucketed():
    packed = batches(examples(1000))
    padding = np.mean([np.mean(packed.batch(s).ids[:, 1:] == 0) for s in range(packed.batches_per_epoch)])
    assert padding < 0.1  # random batches of these lengths would be almost half padding


def test_steps_are_pure_and_epochs_and_seeds_differ():
    data = examples()
    run = batches(data)
    stream = [run.batch(step).ids.tolist() for step in range(30)]
    assert [batches(data).batch(step).ids.tolist() for step in (29, 3, 14)] == [
        stream[29],
        stream[3],
        stream[14],
    ]
    assert stream[:12] != stream[12:24]
    assert batches(data, seed=6).batch(0).ids.tolist() != stream[0]


def test_ranks_share_the_batch_and_its_length():
    packed = batches(examples())
    whole = packed.batch(4)
    parts = [packed.batch(4, rank, 4) for rank in range(4)]
    assert np.array_equal(np.stack([part.ids for part in parts], axis=1).reshape(whole.ids.shape), whole.ids)
    uneven = [packed.batch(4, rank, 3) for rank in range(3)]
    assert len({part.ids.shape for part in uneven}) == 1, "under FSDP all ranks take equally many"
    rows = [
        row
        for part in uneven
        for row, mask in zip(part.ids.tolist(), part.loss_mask, strict=True)
        if mask.any()
    ]
    assert sorted(rows) == sorted(whole.ids.tolist())


def test_too_long_and_lossless_examples_are_left_out():
    data = [([1, 2, 3], [0, 0, 1])] * 8 + [([1] * 65, [1] * 65), ([1, 2], [0, 0])]
    packed = batches(data)
    assert (len(packed), packed.too_long) == (8, 1)
    with pytest.raises(
        ValueError, match=r"8 conversations of at most 64 tokens do not fill .* \(1 are longer\)"
    ):
        batches(data, batch_size=9)
