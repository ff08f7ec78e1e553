"""What a served model tells of itself agrees with what its clients saw."""

import asyncio
import json
import time
from collections.abc import Iterator

import httpx
import pytest
import torch

from cluster import prometheus
from cluster.prometheus import Emitter
from llm.engine.engine import Engine
from llm.engine.loop import EngineLoop
from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.tokenizer.load import load_tokenizer
from llm.tokenizer.train import train_tokenizer
from pipelines.serve import meter as meter_module
from pipelines.serve.api import build_app
from pipelines.serve.meter import Meter
from pipelines.serve.service import Service
from tests.unit.cluster.recorded_metrics import Recorded


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch, prometheus)


@pytest.fixture
def service(recorded: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Service]:
    monkeypatch.setattr(meter_module, "_SAMPLE_SECONDS", 0.02)
    (tmp_path / "tokenizer.model").write_bytes(
        train_tokenizer(["def f(x):\n    return x + 1\n"] * 40, vocab_size=320)
    )
    tokenizer = load_tokenizer(tmp_path)
    model = Decoder(model_config("tiny-100k", tokenizer.vocab_size, max_seq_len=128))
    model.init_weights(seed=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engine_loop = EngineLoop(Engine(model, max_batch=2, step_tokens=64), max_queued=2)
    meter = Meter(Emitter("serving", {"model": "tiny"}), engine_loop)
    yield Service(engine_loop, meter, tokenizer, "tiny", "models/tiny/1", "1", 128)
    meter.close()
    engine_loop.stop()
    torch.set_num_threads(threads)


def body(**changes) -> dict:
    return {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 10, "ignore_eos": True} | changes


async def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.01)


def with_client(service: Service, test) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(build_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            await test(client)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_requests_tokens_and_times_are_counted(service: Service, recorded: Recorded) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        for changes in ({}, {"n": 2}, {"stream": True}):
            assert (await client.post("/v1/completions", json=body(**changes))).status_code == 200
        chat = {"messages": [{"role": "user", "content": "def f"}], "max_tokens": 5, "ignore_eos": True}
        assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
        for changes, status in (({"prompt": []}, 400), ({"model": "other"}, 404), ({"max_tokens": 999}, 400)):
            assert (await client.post("/v1/completions", json=body(**changes))).status_code == status
        await client.get("/v1/models")
        await client.get("/health")
        await wait_for(lambda: recorded.total("manta_serving_generated_tokens") == 10 + 20 + 10 + 5)

    with_client(service, test)
    counted = {
        (labels["endpoint"], labels["status"]): value
        for labels, value in recorded.series("manta_serving_requests")
    }
    expected = {("completions", "200"): 3, ("completions", "400"): 2, ("completions", "404"): 1}
    assert counted == expected | {("chat", "200"): 1}
    assert all(labels["model"] == "tiny" for labels, _ in recorded.series("manta_serving_requests"))
    to_first = recorded.observations("manta_serving_time_to_first_token_seconds")
    whole = recorded.observations("manta_serving_request_seconds")
    assert len(to_first) == 4
    assert len(whole) == 7
    assert all(0 < seconds < 20 for seconds in to_first + whole)
    assert recorded.total("manta_serving_prompt_tokens") > 3 + 6 + 3


def test_the_queue_and_a_full_one_are_seen(service: Service, recorded: Recorded) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        calls = [
            asyncio.create_task(client.post("/v1/completions", json=body(max_tokens=60))) for _ in range(4)
        ]
        seen: set[tuple[float, float]] = set()
        statuses = []
        while not all(call.done() for call in calls):
            seen.add((recorded.total("manta_serving_running"), recorded.total("manta_serving_waiting")))
            if (2, 2) in seen and not statuses:
                statuses.append((await client.post("/v1/completions", json=body())).status_code)
            await asyncio.sleep(0.01)
        assert (2, 2) in seen
        assert statuses == [429]
        await wait_for(lambda: recorded.total("manta_serving_running") == 0)

    with_client(service, test)
    statuses = {labels["status"]: value for labels, value in recorded.series("manta_serving_requests")}
    assert statuses == {"200": 4, "429": 1}


def test_a_client_that_leaves_a_stream_is_counted_as_such(service: Service, recorded: Recorded) -> None:
    app = build_app(service)

    async def main() -> None:
        content = json.dumps(body(max_tokens=120, stream=True)).encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "method": "POST",
            "path": "/v1/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        received, first = [{"type": "http.request", "body": content}], asyncio.Event()

        async def receive() -> dict:
            if received:
                return received.pop()
            await first.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            if message["type"] == "http.response.body":
                first.set()

        await app(scope, receive, send)

    asyncio.run(asyncio.wait_for(main(), 60))
    ((labels, value),) = recorded.series("manta_serving_requests")
    assert (labels["status"], value) == ("499", 1)
