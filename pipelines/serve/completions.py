"""POST /v1/completions: continue a text."""

from collections.abc import AsyncIterator

from llm.tokenizer.tokenizer import Tokenizer
from pipelines.serve.choice import ScoredToken
from pipelines.serve.detokenizer import token_text
from pipelines.serve.errors import invalid
from pipelines.serve.protocol import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from pipelines.serve.service import Call, Service, start_call

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def start(service: Service, body: CompletionRequest) -> Call:
    """Check the body and start its choices.

    A text begins where a document does: after <eos>, as in training. Token ids are taken as they are.
    """
    service.check_model(body.model)
    eos = service.tokenizer.eos_id
    shown = _prompts(service.tokenizer, body)
    prompts = [ids if given_as_ids else [eos, *ids] for ids, given_as_ids in shown]
    return start_call(
        service,
        body,
        prompts,
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=body.logprobs or 0,
        echo_ids=[ids for ids, _ in shown] if body.echo else None,
        score_prompt=bool(body.echo) and body.logprobs is not None,
    )


async def whole(service: Service, body: CompletionRequest, call: Call) -> CompletionResponse:
    """The response once every choice is complete."""
    texts: dict[int, str] = {choice.index: "" for choice in call.choices.values()}
    tokens: dict[int, list[ScoredToken]] = {index: [] for index in texts}
    async for deltas in call.deltas():
        for delta in deltas:
            texts[delta.index] += delta.text
            tokens[delta.index] += delta.tokens
    choices = [
        CompletionChoice(
            index=choice.index,
            text=texts[choice.index],
            logprobs=_logprobs(service.tokenizer, body, tokens[choice.index]),
            finish_reason=choice.finish_reason,
        )
        for choice in call.choices.values()
    ]
    return _response(service, call, choices).model_copy(update={"usage": call.usage()})


async def chunks(service: Service, body: CompletionRequest, call: Call) -> AsyncIterator[CompletionResponse]:
    """The same in pieces."""
    async for deltas in call.deltas():
        for delta in deltas:
            if delta.text or delta.tokens or delta.finish_reason:
                logprobs = _logprobs(service.tokenizer, body, delta.tokens)
                choice = CompletionChoice(
                    index=delta.index, text=delta.text, logprobs=logprobs, finish_reason=delta.finish_reason
                )
                yield _response(service, call, [choice])
    if body.stream_options and body.stream_options.include_usage:
        yield _response(service, call, []).model_copy(update={"usage": call.usage()})


def _response(service: Service, call: Call, choices: list[CompletionChoice]) -> CompletionResponse:
    return CompletionResponse(
        id=f"cmpl-{call.id}",
        created=call.created,
        model=service.model_name,
        system_fingerprint=service.fingerprint,
        choices=choices,
    )


def _prompts(tokenizer: Tokenizer, body: CompletionRequest) -> list[tuple[list[int], bool]]:
    """(ids, whether they were given as ids) for each prompt."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [(tokenizer.encode(prompt), False)]
    if not prompt:
        raise invalid("prompt is an empty list; give at least one text or token id", "prompt")
    if isinstance(prompt[0], int):
        return [(prompt, True)]  # type: ignore[list-item]
    return [
        (tokenizer.encode(item), False) if isinstance(item, str) else (item, True)  # type: ignore[misc]
        for item in prompt
    ]


def _logprobs(
    tokenizer: Tokenizer, body: CompletionRequest, tokens: list[ScoredToken]
) -> CompletionLogprobs | None:
    if body.logprobs is None:
        return None
    names = [token_text(tokenizer, token.id) for token in tokens]
    tops: list[dict[str, float] | None] = []
    for name, token in zip(names, tokens, strict=True):
        if token.logprob is None:
            tops.append(None)
            continue
        # The token itself is always there, even if it was not among the likeliest.
        tops.append({token_text(tokenizer, i): value for i, value in token.top} | {name: token.logprob})
    return CompletionLogprobs(
        tokens=names,
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=tops if body.logprobs else None,
        text_offset=[token.offset for token in tokens],
    )
