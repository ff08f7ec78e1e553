"""What goes into the engine and what comes out: plain data, no torch."""

import math
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]
TopLogprobs = list[tuple[int, float]]
"""(token id, logprob) of the likeliest tokens at one position, best first."""

MAX_SEED = 2**64 - 1


class RequestError(ValueError):
    """A request that can never run, and why."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is sampled.

    Tokens are a pure function of (weights, prompt, these parameters): neighbours in the batch and the order
    of arrival change nothing. Raises RequestError for a value that makes no sense.
    """

    max_tokens: int
    """Most tokens to generate, the stop token included; 0 only scores the prompt."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 means all."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches top_p (arXiv:1904.09751)."""
    seed: int = 0
    """Together with the position it decides each draw."""
    stop_token_ids: tuple[int, ...] = ()
    """Generating one of these ends the response, which includes it."""
    logprobs: int = 0
    """How many of the likeliest tokens to report beside each sampled one."""
    prompt_logprobs: bool = False
    """Whether to score the prompt too (with `logprobs` alternatives at each position)."""

    def __post_init__(self) -> None:
        for name, valid, mend in (
            ("max_tokens", self.max_tokens >= 0, "at least 0"),
            ("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "a number from 0 up"),
            ("top_k", self.top_k >= 0, "at least 0, where 0 means all tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", 0 <= self.seed <= MAX_SEED, "between 0 and 2^64 - 1"),
            ("logprobs", self.logprobs >= 0, "at least 0"),
        ):
            if not valid:
                raise RequestError(f"{name} is {getattr(self, name)}; it must be {mend}")


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt as token ids, and how to continue it. `id` is unique among the requests in the engine."""

    id: str
    prompt_ids: list[int]
    params: SamplingParams


@dataclass(slots=True)
class Output:
    """What one step added to one request."""

    id: str
    token_ids: list[int]
    logprobs: list[float]
    """Log-probability of each token in the distribution that it was drawn from (greedy: the model's)."""
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    weights_version: int = 0
    prompt_logprobs: list[float] | None = None
    """On a request's first output, if asked for: one per prompt token after the first, temperature 1."""
    prompt_top_logprobs: list[TopLogprobs] | None = None


@dataclass(slots=True)
class Completion:
    """A finished request. With finish_reason "stop" the last response id is the stop token."""

    id: str
    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    weights_version: int
    """Of the oldest weights that had a part in it."""
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    prompt_logprobs: list[float] | None = None
    prompt_top_logprobs: list[TopLogprobs] | None = None
