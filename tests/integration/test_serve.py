"""The served API, driven by the real `openai` client, on a private Ray cluster with a random tiny model."""

import concurrent.futures
import os
import socket
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
import ray
import torch

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster, start_local
from cluster.errors import UserError
from llm.models.decoder import Decoder
from llm.models.heads import DecoderWithScalar
from llm.models.load import save_model
from llm.models.presets import model_config
from llm.tokenizer.load import load_tokenizer
from llm.tokenizer.train import train_tokenizer
from pipelines.chat import stage as chat_stage
from pipelines.chat.config import ChatConfig
from pipelines.serve import stage
from pipelines.serve.config import ServeConfig
from tests.integration.endpoint import REPORT_EVERY_SECOND, scrape, wait_for

KEY = "a-key-for-tests"
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "def f(x):"}]


def make_model(store: ArtifactStore, name: str, head: str = "lm") -> Artifact:
    draft = store.begin(
        kind="models", name=name, stage="made", logic_version=1, what={"head": head}, inputs={}
    )
    assert isinstance(draft, Draft)
    texts = ["def f(x):\n    return x + 1\n", "class A:\n    def g(self):\n        pass\n"] * 40
    draft.write("tokenizer.model", train_tokenizer(texts, vocab_size=340))
    config = model_config("tiny-100k", 340, max_seq_len=2048)
    model = (Decoder if head == "lm" else DecoderWithScalar)(config)
    model.init_weights(seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() == 2 else 1)
    with draft.writing() as writing:
        save_model(writing.path, model.state_dict(), config, head)
    return draft.commit({})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ArtifactStore:
    store = ArtifactStore(tmp_path_factory.mktemp("root"))
    make_model(store, "tiny")
    make_model(store, "score", head="scalar")
    return store


@pytest.fixture(scope="module")
def url(store) -> Iterator[str]:
    os.environ["MANTA_API_KEY"] = KEY
    start_local(num_cpus=2, **REPORT_EVERY_SECOND)
    config = ServeConfig(
        root=str(store.root), model="tiny", port=free_port(), threads=1, max_batch=4, max_queued_requests=12
    )
    model = stage.resolve_inputs(config, store)["model"]
    try:
        with stage.serving(config, model, Cluster()) as url:
            yield url
    finally:
        ray.shutdown()
        del os.environ["MANTA_API_KEY"]


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def tokenizer(store):
    return load_tokenizer(store.resolve("models", "tiny").fetch())


def requests_in_flight(url: str) -> int:
    return httpx.get(f"{url}/health").json()["requests"]


def wait_until_idle(url: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while requests_in_flight(url):
        assert time.monotonic() < deadline, "the engine still works for a client that left"
        time.sleep(0.05)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == 2048
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client.models.retrieve("gpt-5")


def test_completion_of_text_lists_and_token_ids(client, tokenizer):
    one = client.completions.create(model="tiny", prompt="def f", max_tokens=12, temperature=0)
    assert one.choices[0].finish_reason == "length"
    assert one.usage.completion_tokens == 12
    assert one.usage.total_tokens == one.usage.prompt_tokens + 12

    several = client.completions.create(
        model="tiny", prompt=["def f", "class A"], max_tokens=12, temperature=0, n=2
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == one.choices[0].text

    ids = [tokenizer.eos_id, *tokenizer.encode("def f")]
    assert client.completions.create(model="tiny", prompt=ids, max_tokens=12, temperature=0).choices[
        0
    ].text == (one.choices[0].text)
    many = client.completions.create(model="tiny", prompt=[ids, ids[:2]], max_tokens=3, temperature=0)
    assert len(many.choices) == 2


def test_seeds_repeat_and_differ(client):
    def ask(**more):
        choices = client.completions.create(model="tiny", prompt="x", max_tokens=20, **more).choices
        return [choice.text for choice in choices]

    assert ask(seed=5) == ask(seed=5)
    assert ask(seed=5) != ask(seed=6)
    assert ask(seed=5, n=2) == ask(seed=5) + ask(seed=6)
    assert ask() != ask()
    assert ask(seed=-1) == ask(seed=-1)


def test_echo_and_logprobs_as_evaluation_harnesses_send_them(client, tokenizer):
    ids = tokenizer.encode("def f(x):\n    return x + 1\n")
    response = client.completions.create(
        model="tiny", prompt=[ids], max_tokens=1, temperature=0, echo=True, logprobs=2, seed=1
    )
    logprobs = response.choices[0].logprobs
    assert len(logprobs.tokens) == len(ids) + 1
    assert logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in logprobs.token_logprobs[1:])
    assert all(len(top) in (2, 3) for top in logprobs.top_logprobs[1:])
    assert response.choices[0].text.startswith("def f(x):\n    return x + 1\n")
    for token, offset in list(zip(logprobs.tokens, logprobs.text_offset, strict=True))[:5]:
        assert response.choices[0].text[offset:].startswith(token)

    scored = client.completions.create(model="tiny", prompt="def f(x)", max_tokens=0, echo=True, logprobs=0)
    assert scored.choices[0].text == "def f(x)"
    assert len(scored.choices[0].logprobs.tokens) == len(tokenizer.encode("def f(x)"))
    assert None not in scored.choices[0].logprobs.token_logprobs, "a text is scored from its <eos> on"


@pytest.mark.parametrize("extra", [{}, {"stop": ["e", "\n"]}, {"n": 2}, {"logprobs": 2}])
def test_a_completion_streams_to_the_same_text(client, extra):
    ask = {"model": "tiny", "prompt": "class A", "max_tokens": 40, "seed": 3} | extra
    whole = client.completions.create(**ask)
    texts, reasons, tokens = {}, {}, {}
    *chunks, last = client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        reasons[choice.index] = choice.finish_reason
        tokens.setdefault(choice.index, []).extend(choice.logprobs.tokens if choice.logprobs else [])
    assert last.choices == []
    assert last.usage == whole.usage
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert reasons[choice.index] == choice.finish_reason
        assert tokens[choice.index] == (choice.logprobs.tokens if choice.logprobs else [])


@pytest.mark.parametrize("extra", [{}, {"stop": "r"}, {"n": 3}, {"logprobs": True, "top_logprobs": 3}])
def test_a_chat_streams_to_the_same_reply(client, extra):
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40, "seed": 3, "temperature": 0.9} | extra
    whole = client.chat.completions.create(**ask)
    texts, reasons, tokens = {}, {}, {}
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        reasons[choice.index] = choice.finish_reason
        tokens.setdefault(choice.index, []).extend(choice.logprobs.content if choice.logprobs else [])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    for choice in whole.choices:
        assert choice.message.role == "assistant"
        assert texts[choice.index] == choice.message.content
        assert reasons[choice.index] == choice.finish_reason
        if choice.logprobs:
            assert tokens[choice.index] == choice.logprobs.content
            for token in choice.logprobs.content:
                assert len(token.top_logprobs) == 3
                assert token.logprob <= token.top_logprobs[0].logprob + 1e-6
            raw = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
            assert raw.decode(errors="replace").startswith(choice.message.content)


def test_stop_strings_across_tokens_end_the_text_before_them(client):
    ask = {"model": "tiny", "prompt": "def f", "seed": 11, "max_tokens": 60}
    text = client.completions.create(**ask).choices[0].text
    stop = text[20:26]
    stopped = client.completions.create(**ask, stop=[stop, "never"], logprobs=0).choices[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert len(stopped.logprobs.tokens) < 60
    assert stopped.logprobs.text_offset[-1] < len(stopped.text), "no token of the stop string is reported"


def test_chat_content_in_parts_and_fields_we_do_not_know(client):
    parts = [{"role": "user", "content": [{"type": "text", "text": "def "}, {"type": "text", "text": "f"}]}]
    plain = [{"role": "user", "content": "def f"}]
    replies = [
        client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_completion_tokens=9,
            seed=1,
            user="me",
            extra_body={"top_k": 5, "x": 1},
        )
        for messages in (parts, plain)
    ]
    assert replies[0].choices[0].message.content == replies[1].choices[0].message.content


def test_errors_are_openai_shaped(client, url):
    def refused(kind, message, call, **body):
        with pytest.raises(kind, match=message) as caught:
            call(**{"model": "tiny"} | body)
        assert set(caught.value.body) == {"message", "type", "param", "code"}

    complete, chat = client.completions.create, client.chat.completions.create
    refused(openai.NotFoundError, "this server has 'tiny'", complete, model="other", prompt="x")
    refused(openai.BadRequestError, "temperature", complete, prompt="x", temperature=-1)
    refused(openai.BadRequestError, "exceed the 2048", complete, prompt="x", max_tokens=5000)
    refused(openai.BadRequestError, "prompt is empty", complete, prompt=[[]])
    refused(openai.BadRequestError, "empty list", complete, prompt=[])
    refused(openai.BadRequestError, "token id outside", complete, prompt=[99999])
    refused(openai.BadRequestError, "messages", chat, messages=[])
    refused(openai.BadRequestError, "role", chat, messages=[{"role": "wizard", "content": "x"}])
    refused(
        openai.BadRequestError, "leave no room", chat, messages=[{"role": "user", "content": "x;" * 3000}]
    )
    refused(openai.BadRequestError, "exceed the 2048", chat, messages=MESSAGES, max_tokens=2040, stream=True)

    with pytest.raises(openai.AuthenticationError, match="MANTA_API_KEY"):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    assert httpx.get(f"{url}/v1/models").status_code == 401
    headers = {"Authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{url}/v1/nothing", headers=headers).json()["error"]["message"] == "Not Found"
    headers["Content-Type"] = "application/json"
    broken = httpx.post(f"{url}/v1/completions", headers=headers, content=b'{"prompt": ')
    assert broken.status_code == 400
    assert "JSON" in broken.json()["error"]["message"]


def test_concurrent_clients_each_get_what_they_would_get_alone(client):
    def ask(seed: int) -> str:
        ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 10 + seed, "seed": seed}
        if seed % 2:
            return client.chat.completions.create(**ask).choices[0].message.content
        chunks = client.chat.completions.create(**ask, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, range(12)))
    assert together == [ask(seed) for seed in range(12)]


def test_the_queue_is_bounded(client, url):
    with pytest.raises(openai.RateLimitError, match="running or waiting") as caught:
        client.completions.create(model="tiny", prompt="x", n=17, max_tokens=5)
    assert caught.value.response.headers["retry-after"] == "1"
    assert len(client.completions.create(model="tiny", prompt="x", n=16, max_tokens=5).choices) == 16


def test_clients_that_leave_free_their_slots(client, url):
    long = {"model": "tiny", "prompt": "x", "max_tokens": 2000, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(**long, n=4, stream=True)
    next(iter(stream))
    assert requests_in_flight(url) == 4
    stream.close()
    wait_until_idle(url)

    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(**long, n=8)
    wait_until_idle(url)


def test_chat_command_against_the_server(url, capsys, monkeypatch):
    ask = {"url": url, "message": "def f(x):", "seed": 4, "max_tokens": 12, "temperature": 0.9}
    assert chat_stage.run(ChatConfig(**ask)) == 0
    first = capsys.readouterr().out
    assert chat_stage.run(ChatConfig(**ask)) == 0
    assert capsys.readouterr().out == first
    assert first.strip()

    lines = iter(["hello", "/clear", "/what", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert chat_stage.run(ChatConfig(url=f"{url}/v1/", max_tokens=5, seed=1)) == 0
    assert "no command /what" in capsys.readouterr().out

    monkeypatch.setenv("MANTA_API_KEY", "wrong")
    with pytest.raises(UserError, match="refused: no valid API key"):
        chat_stage.run(ChatConfig(**ask))
    with pytest.raises(UserError, match=r"no server at http://127\.0\.0\.1:9 .* `manta serve`"):
        chat_stage.run(ChatConfig(url="http://127.0.0.1:9", message="x"))


def test_what_is_measured_is_at_rays_endpoint(client, url):
    def total(name: str, **labels: str) -> float:
        series = scrape()[f"ray_manta_serving_{name}"]
        return sum(value for found, value in series if labels.items() <= found.items())

    def totals() -> dict[str, float]:
        ok = {"model": "tiny", "deployment": "model", "application": "manta", "status": "200"}
        return {
            "completions": total("requests_total", endpoint="completions", **ok),
            "chats": total("requests_total", endpoint="chat", **ok),
            "unknown": total("requests_total", endpoint="chat", status="404"),
            "generated": total("generated_tokens_total", model="tiny"),
            "prompt": total("prompt_tokens_total", model="tiny"),
            "first tokens": total("time_to_first_token_seconds_count", model="tiny"),
            "answers": total("request_seconds_count", model="tiny"),
        }

    wait_until_idle(url)
    time.sleep(4)  # Until what happened before has been sampled, reported and collected.
    before = totals()
    endless = {"extra_body": {"ignore_eos": True}}
    client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=12, **endless)
    list(
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, stream=True, **endless)
    )
    prompt = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1).usage.prompt_tokens
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=MESSAGES)
    expected = {"completions": 1, "chats": 2, "unknown": 1, "generated": 12 + 8 + 1, "prompt": 3 + 2 * prompt}
    expected |= {"first tokens": 3, "answers": 4}
    after = {name: before[name] + more for name, more in expected.items()}
    wait_for(lambda: totals() == after, f"{before} did not grow by {expected}")
    assert total("running") == total("waiting") == 0


def test_mistakes_are_found_before_ray_starts(store, monkeypatch):
    def refused(message: str, **fields) -> None:
        with pytest.raises(UserError, match=message):
            stage.resolve_inputs(ServeConfig(root=str(store.root), **fields), store)

    refused("score.* is a reward model", model="score")
    refused("tiny", model="nothing")
    refused("beyond the 2048 tokens", model="tiny", max_seq_len=4096)
    monkeypatch.delenv("MANTA_API_KEY", raising=False)
    refused("set MANTA_API_KEY", model="tiny", host="0.0.0.0", port=free_port())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused("cannot listen on .* choose another --port", model="tiny", port=taken.getsockname()[1])
