"""Which tokens run in the next step. Plain lists, no tensors.

    one token budget per step:  every decoding sequence takes 1, first;
                                the rest goes to prefill, first come first served, in chunks.

Invariants: `running[i]` owns KV slot i, so that decoding is one dense batch; at most one running sequence is
in prefill between steps, and it is the last. Hence a long prompt delays the others' next token by at most one
chunk, and no decode waits for a prefill to end.
"""

from collections import deque
from dataclasses import dataclass

from llm.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of the sequence in `slot`."""

    slot: int
    sequence: Sequence
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether the next token can be sampled after this chunk."""
        return self.start + self.count == len(self.sequence.tokens)

    @property
    def targets(self) -> list[int]:
        """Prompt tokens that follow this chunk's positions, if the request wants its prompt scored."""
        sequence, end = self.sequence, self.start + self.count
        if not sequence.params.prompt_logprobs or sequence.generated:
            return []
        return sequence.tokens[self.start + 1 : end + 1]


class Scheduler:
    """Waiting and running sequences over `max_batch` slots."""

    def __init__(self, max_batch: int, step_tokens: int) -> None:
        self.max_batch = max_batch
        self.step_tokens = step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def schedule(self) -> tuple[int, list[Chunk]]:
        """(number of decoding sequences, in slots 0, 1, …; prefill chunks in the slots that follow)."""
        decoding = len(self.running)
        if self.running and self.running[-1].uncomputed > 1:
            decoding -= 1
        budget = self.step_tokens - decoding
        chunks = []
        for sequence in self.running[decoding:]:
            chunks.append(self._chunk(decoding, sequence, budget))
            budget -= chunks[-1].count
        while self.waiting and budget > 0 and len(self.running) < self.max_batch:
            sequence = self.waiting.popleft()
            chunks.append(self._chunk(len(self.running), sequence, budget))
            budget -= chunks[-1].count
            self.running.append(sequence)
        return decoding, chunks

    def release(self, slot: int) -> list[tuple[int, int, int]]:
        """Free a slot. Returns the moves (from, to, tokens), in order, that keep the cache's slots dense."""
        running, last = self.running, len(self.running) - 1
        moves: list[tuple[int, int, int]] = []
        # Decoding sequences come first: the last of them fills a hole among them, and leaves one behind …
        prefilling = last if running[last].uncomputed > 1 else None
        if prefilling is not None and slot < prefilling - 1:
            moves.append((prefilling - 1, slot, running[prefilling - 1].computed))
            slot = prefilling - 1  # … for the sequence in prefill, which stays last
        if slot < last:
            moves.append((last, slot, running[last].computed))
        for source, target, _ in moves:
            running[target] = running[source]
        running.pop()
        return moves

    def requeue_running(self) -> None:
        """Send every running sequence back to prefill, in order, ahead of those waiting."""
        for sequence in reversed(self.running):
            sequence.computed = 0
            self.waiting.appendleft(sequence)
        self.running.clear()

    @staticmethod
    def _chunk(slot: int, sequence: Sequence, budget: int) -> Chunk:
        return Chunk(slot, sequence, sequence.computed, min(sequence.uncomputed, budget))
