"""The scheduler's invariants over random histories."""

import random

import pytest

from llm.engine.request import Request, SamplingParams
from llm.engine.scheduler import Scheduler
from llm.engine.sequence import Sequence


@pytest.mark.parametrize("seed", range(30))
def test_invariants_hold_through_random_histories(seed):
    rng = random.Random(seed)
    max_batch = rng.randint(1, 6)
    scheduler = Scheduler(max_batch, step_tokens=max_batch + rng.randint(1, 12))
    slots: dict[int, list[int]] = {}  # what the cache holds: tokens by slot
    arrived, admitted = 0, []
    for _ in range(300):
        if rng.random() < 0.4:
            ids = [rng.randrange(1000) for _ in range(rng.randint(1, 30))]
            scheduler.waiting.append(Sequence(Request(str(arrived), ids, SamplingParams(rng.randint(1, 8)))))
            arrived += 1
        decoding, chunks = scheduler.schedule()
        running = scheduler.running
        assert len(running) <= max_batch
        assert decoding + sum(c.count for c in chunks) <= scheduler.step_tokens
        assert [c.slot for c in chunks] == list(range(decoding, len(running)))
        assert all(c.count > 0 for c in chunks)
        assert all(c.completes for c in chunks[:-1]), "only the last may be unfinished"
        for slot, sequence in enumerate(running[:decoding]):
            assert sequence.uncomputed == 1
            slots[slot].append(sequence.tokens[-1])
            sequence.computed += 1
        for chunk in chunks:
            if chunk.start == 0:
                slots[chunk.slot] = []
                admitted.append(int(chunk.sequence.request.id))
            slots[chunk.slot] += chunk.sequence.tokens[chunk.start : chunk.start + chunk.count]
            chunk.sequence.computed += chunk.count
        for sequence in running[:decoding] + [c.sequence for c in chunks if c.completes]:
            sequence.append(rng.randrange(1000))
        for slot in range(len(running) - 1, -1, -1):
            if running[slot].finish_reason or rng.random() < 0.05:
                for source, target, length in scheduler.release(slot):
                    slots[target] = slots[source][:length]
        for slot, sequence in enumerate(running):
            assert slots[slot] == sequence.tokens[: sequence.computed]
            assert sequence.uncomputed == 1 or slot == len(running) - 1
    assert admitted == sorted(admitted), "first come, first served"
    assert len(admitted) > 20
