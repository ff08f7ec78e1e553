"""POST /v1/chat/completions: answer a conversation."""

from collections.abc import AsyncIterator

from llm.tokenizer.chat import encode_prompt
from llm.tokenizer.tokenizer import Tokenizer
from pipelines.serve.choice import ScoredToken
from pipelines.serve.detokenizer import token_bytes, token_text
from pipelines.serve.errors import invalid
from pipelines.serve.protocol import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    Reply,
    TokenLogprob,
    TopLogprob,
)
from pipelines.serve.service import Call, Service, start_call

_ROLES = {"developer": "system"}


def start(service: Service, body: ChatRequest) -> Call:
    """Check the body and start its choices. Without a limit a reply may fill the context."""
    service.check_model(body.model)
    messages = [{"role": _ROLES.get(m.role, m.role), "content": m.text()} for m in body.messages]
    prompt = encode_prompt(service.tokenizer, messages)
    room = service.max_seq_len - len(prompt)
    if room < 1:
        raise invalid(
            f"the conversation's {len(prompt)} tokens leave no room for a reply in a context of "
            f"{service.max_seq_len}; shorten it",
            "messages",
        )
    return start_call(
        service,
        body,
        [prompt],
        max_tokens=body.max_completion_tokens or body.max_tokens or room,
        logprobs=(body.top_logprobs or 0) if body.logprobs else 0,
    )


async def whole(service: Service, body: ChatRequest, call: Call) -> ChatResponse:
    """The response once every choice is complete."""
    texts: dict[int, str] = {choice.index: "" for choice in call.choices.values()}
    tokens: dict[int, list[ScoredToken]] = {index: [] for index in texts}
    async for deltas in call.deltas():
        for delta in deltas:
            texts[delta.index] += delta.text
            tokens[delta.index] += delta.tokens
    return ChatResponse(
        id=f"chatcmpl-{call.id}",
        created=call.created,
        model=service.model_name,
        system_fingerprint=service.fingerprint,
        choices=[
            ChatChoice(
                index=choice.index,
                message=Reply(role="assistant", content=texts[choice.index]),
                logprobs=_logprobs(service.tokenizer, body, tokens[choice.index]),
                finish_reason=choice.finish_reason,
            )
            for choice in call.choices.values()
        ],
        usage=call.usage(),
    )


async def chunks(service: Service, body: ChatRequest, call: Call) -> AsyncIterator[ChatChunk]:
    """The same in pieces: first the role, then text, then the reason it ended."""

    def chunk(*choices: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(
            id=f"chatcmpl-{call.id}",
            created=call.created,
            model=service.model_name,
            system_fingerprint=service.fingerprint,
            choices=list(choices),
        )

    for choice in call.choices.values():
        yield chunk(ChatChunkChoice(index=choice.index, delta=Reply(role="assistant", content="")))
    async for deltas in call.deltas():
        for delta in deltas:
            if delta.text or delta.tokens or delta.finish_reason:
                yield chunk(
                    ChatChunkChoice(
                        index=delta.index,
                        delta=Reply(content=delta.text or None),
                        logprobs=_logprobs(service.tokenizer, body, delta.tokens),
                        finish_reason=delta.finish_reason,
                    )
                )
    if body.stream_options and body.stream_options.include_usage:
        yield chunk().model_copy(update={"usage": call.usage()})


def _logprobs(tokenizer: Tokenizer, body: ChatRequest, tokens: list[ScoredToken]) -> ChatLogprobs | None:
    if not body.logprobs:
        return None

    def entry(token: int, logprob: float) -> TopLogprob:
        raw = token_bytes(tokenizer, token)
        return TopLogprob(token=token_text(tokenizer, token), logprob=logprob, bytes=list(raw))

    return ChatLogprobs(
        content=[
            TokenLogprob(
                **entry(token.id, token.logprob).model_dump(),
                top_logprobs=[entry(i, value) for i, value in token.top],
            )
            for token in tokens
            if token.logprob is not None
        ]
    )
