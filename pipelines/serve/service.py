"""A served model: from API bodies to engine requests, and from outputs to deltas."""

import itertools
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from llm.engine.loop import EngineLoop, Stream
from llm.engine.request import MAX_SEED, Request, SamplingParams
from llm.tokenizer.special import STOP_IDS
from llm.tokenizer.tokenizer import Tokenizer
from pipelines.serve.choice import Choice, Delta
from pipelines.serve.errors import unknown_model
from pipelines.serve.meter import Meter
from pipelines.serve.protocol import ChatRequest, CompletionRequest, Usage


@dataclass
class Service:
    """What every endpoint needs."""

    engine_loop: EngineLoop
    meter: Meter
    tokenizer: Tokenizer
    model_name: str
    model_ref: str
    fingerprint: str
    max_seq_len: int
    key_digest: str | None = None
    """SHA-256 of the API key in hex; None lets everybody in."""
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, model: str | None) -> None:
        """Raise the 404 if the client wants a model that is not here."""
        if model is not None and model not in (self.model_name, self.model_ref):
            raise unknown_model(model, self.model_name)

    @property
    def strip_space(self) -> bool:
        """Whether the tokenizer puts a space before a text that has none."""
        return self.tokenizer.decode_bytes(self.tokenizer.encode("a")) == b" a"


@dataclass
class Call:
    """The choices of one API call, running. `created` and `id` are what its responses carry."""

    id: str
    prompt_tokens: int
    choices: dict[str, Choice]
    stream: Stream
    meter: Meter
    accepted: float = field(default_factory=time.perf_counter)
    created: int = field(default_factory=lambda: int(time.time()))

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """What is new, as it comes. Leaving early, or being cancelled, frees the engine's slots."""
        begun = False
        async with self.stream:
            async for outputs in self.stream:
                if not begun and any(output.token_ids for output in outputs):
                    self.meter.first_token(time.perf_counter() - self.accepted)
                    begun = True
                deltas = []
                for output in outputs:
                    choice = self.choices[output.id]
                    if choice.finish_reason is not None:
                        continue
                    deltas.append(choice.push(output))
                    if choice.finish_reason is not None:
                        self.stream.abort(output.id)  # a stop string ended it before the engine did
                yield deltas

    def usage(self) -> Usage:
        """Tokens in and out so far."""
        completion = sum(choice.completion_tokens for choice in self.choices.values())
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=completion,
            total_tokens=self.prompt_tokens + completion,
        )


def start_call(
    service: Service,
    body: CompletionRequest | ChatRequest,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
    logprobs: int,
    echo_ids: Sequence[list[int]] | None = None,
    score_prompt: bool = False,
) -> Call:
    """Start `body.n` choices for each prompt. Choice i of a prompt is sampled with seed + i.

    Raises RequestError (400) or QueueFullError (429) before anything runs.
    """
    call_id = uuid.uuid4().hex
    seed = secrets.randbits(63) if body.seed is None else body.seed
    tokenizer = service.tokenizer
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    requests, choices = [], {}
    for index, (row, sample) in enumerate(itertools.product(range(len(prompts)), range(body.n or 1))):
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=max(0, body.top_k or 0),
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=(seed + sample) & MAX_SEED,
            stop_token_ids=() if body.ignore_eos else STOP_IDS,
            logprobs=logprobs,
            prompt_logprobs=score_prompt,
        )
        request = Request(f"{call_id}-{index}", prompts[row], params)
        requests.append(request)
        choices[request.id] = Choice(
            index,
            tokenizer,
            stops,
            echo_ids=echo_ids[row] if echo_ids is not None else None,
            strip_space=service.strip_space and isinstance(body, ChatRequest),
        )
    stream = service.engine_loop.stream(requests)
    prompt_tokens = sum(map(len, prompts))
    service.meter.accepted(prompt_tokens)
    return Call(call_id, prompt_tokens, choices, stream, service.meter)
