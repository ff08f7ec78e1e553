"""An answer that is sampled to be ranked, graded or learned from ends where a served one would."""

from types import SimpleNamespace

from llm.engine.request import Request
from llm.engine.sequence import Sequence
from llm.tokenizer.special import END_ID, EOS_ID
from pipelines.prompts import Prompt
from pipelines.sampling import chat_request
from pipelines.serve.protocol import ChatRequest
from pipelines.serve.service import start_call

PROMPT = Prompt(
    id="p", group="g", messages=[{"role": "user", "content": "hello"}], token_ids=[2, 5, 20, 7, 6]
)


def sampled_request() -> Request:
    return chat_request(PROMPT, 0, max_tokens=8, temperature=1.0, seed=0)


def served_request() -> Request:
    started: list[Request] = []
    service = SimpleNamespace(
        tokenizer=SimpleNamespace(decode_bytes=lambda ids: b"", encode=lambda text: []),
        engine_loop=SimpleNamespace(stream=started.extend),
        meter=SimpleNamespace(accepted=lambda tokens: None),
        strip_space=False,
    )
    body = ChatRequest.model_validate({"messages": PROMPT.messages, "model": "m"})
    start_call(service, body, [PROMPT.token_ids], max_tokens=8, logprobs=0)  # type: ignore[arg-type]
    return started[0]


def test_both_end_at_the_same_tokens() -> None:
    for drawn in ([21, END_ID, 22], [21, EOS_ID, 22], [21, 22, 23, 24, 25, 26, 27, 28]):
        ends = []
        for request in (sampled_request(), served_request()):
            sequence = Sequence(request)
            for token in drawn:
                if sequence.finish_reason is None:
                    sequence.append(token)
            ends.append((sequence.generated, sequence.finish_reason))
        assert ends[0] == ends[1], drawn
        assert ends[0] == ((2, "stop") if len(drawn) == 3 else (8, "length"))
