"""What is measured while models answer prompts: for Ray's Prometheus endpoint, progress and run.json."""

import time

from cluster.artifacts.draft import Draft
from cluster.prometheus import Emitter


class PromptMeter:
    """Counts answered prompts until `close`; Ray must be running.

    prompts: still to be answered; a prompt that two models answer is two.
    """

    def __init__(self, stage: str, draft: Draft, prompts: int) -> None:
        self._prompts, self.count, self._tokens = prompts, 0, 0
        self._began = time.monotonic()
        self._emitter = Emitter("prompts", {"stage": stage, "run": f"{draft.name}-{draft.version}"})
        self._emitter.set("remaining", prompts)

    def answered(self, prompts: int, tokens: int) -> None:
        """Some more, with so many tokens in all their responses."""
        self.count += prompts
        self._tokens += tokens
        self._emitter.count("answered", prompts)
        self._emitter.count("tokens", tokens)
        self._emitter.set("remaining", self._prompts - self.count)
        self._emitter.set("tokens_per_s", self._tokens / self._seconds)

    def rate(self) -> dict[str, float]:
        """How fast this run works, as a field to show."""
        return {"tokens_per_s": self._tokens / self._seconds} if self._tokens else {}

    def summary(self) -> dict[str, float]:
        """The same numbers as the metrics', for run.json."""
        return {
            "answered": self.count,
            "tokens": self._tokens,
            "seconds": self._seconds,
            "tokens_per_s": self._tokens / self._seconds,
        }

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self._began, 1e-9)

    def close(self) -> None:
        """Let the gauges fade."""
        self._emitter.close()
