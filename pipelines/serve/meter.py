"""What a replica tells of its work: requests, tokens, times, and how busy the engine is."""

import threading

from cluster.prometheus import Emitter
from llm.engine.engine import Engine
from llm.engine.loop import EngineLoop

_SAMPLE_SECONDS = 1.0


class Meter:
    """Emits the metrics of group "serving". The engine is looked at once a second, between two of its steps:
    no token waits for being counted.
    """

    def __init__(self, emitter: Emitter, engine_loop: EngineLoop) -> None:
        self._emitter, self._engine_loop = emitter, engine_loop
        self._counted_tokens = 0
        self._closed = threading.Event()
        threading.Thread(target=self._sample, name="engine-meter", daemon=True).start()

    def accepted(self, prompt_tokens: int) -> None:
        """A request has been handed to the engine."""
        self._emitter.count("prompt_tokens", prompt_tokens)

    def first_token(self, seconds: float) -> None:
        """An accepted request got its first token, after so long."""
        self._emitter.observe("time_to_first_token_seconds", seconds)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """A request is over, accepted or not."""
        self._emitter.count("requests", endpoint=endpoint, status=str(status))
        self._emitter.observe("request_seconds", seconds, endpoint=endpoint)

    def close(self) -> None:
        """Stop looking at the engine."""
        self._closed.set()
        self._emitter.close()

    def _sample(self) -> None:
        while self._engine_loop.failure is None:
            self._engine_loop.run(self._measure)
            if self._closed.wait(_SAMPLE_SECONDS):
                return

    def _measure(self, engine: Engine) -> None:
        self._emitter.set("running", len(engine.scheduler.running))
        self._emitter.set("waiting", len(engine.scheduler.waiting))
        self._emitter.count("generated_tokens", engine.generated_tokens - self._counted_tokens)
        self._counted_tokens = engine.generated_tokens
