"""A chat over HTTP with a byte-level tokenizer, whose pieces are parts of characters."""

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest
import torch

from cluster.prometheus import Emitter
from llm.engine.engine import Engine
from llm.engine.loop import EngineLoop
from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.tokenizer.byte_level import ByteLevelTokenizer
from llm.tokenizer.chat import encode_prompt
from llm.tokenizer.renumber_json import renumber_json
from pipelines.serve.api import build_app
from pipelines.serve.meter import Meter
from pipelines.serve.service import Service
from tests.byte_level_forms import make_tokenizer

MESSAGES = [{"role": "user", "content": "日本語 <|end|>?"}]


@pytest.fixture
def service() -> Iterator[Service]:
    made = make_tokenizer("llama3", texts=["日本語のテキスト 🎉🎊 Привет мир, naïve café"])
    tokenizer = ByteLevelTokenizer(renumber_json(made.to_str().encode(), {}).model)
    model = Decoder(model_config("tiny-100k", tokenizer.vocab_size, max_seq_len=256))
    model.init_weights(seed=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engine_loop = EngineLoop(Engine(model, max_batch=2, step_tokens=64), max_queued=2)
    meter = Meter(Emitter("serving", {"model": "tiny"}), engine_loop)
    yield Service(engine_loop, meter, tokenizer, "tiny", "models/tiny/1", "1", 256)
    meter.close()
    engine_loop.stop()
    torch.set_num_threads(threads)


def test_a_streamed_reply_is_the_whole_reply_and_the_bytes_of_its_tokens(service: Service) -> None:
    chat = {"messages": MESSAGES, "max_tokens": 200, "ignore_eos": True, "seed": 3, "logprobs": True}

    echo = {"prompt": "🎉 def", "max_tokens": 1, "echo": True, "ignore_eos": True, "seed": 3}

    async def ask() -> tuple[dict, str, dict]:
        transport = httpx.ASGITransport(build_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            whole = await client.post("/v1/chat/completions", json=chat)
            stream = await client.post("/v1/chat/completions", json=chat | {"stream": True})
            return whole.json(), stream.text, (await client.post("/v1/completions", json=echo)).json()

    whole, stream, echoed = asyncio.run(asyncio.wait_for(ask(), 60))
    content = whole["choices"][0]["message"]["content"]
    assert whole["usage"]["prompt_tokens"] == len(encode_prompt(service.tokenizer, MESSAGES))
    scored = whole["choices"][0]["logprobs"]["content"]
    assert len(scored) == whole["usage"]["completion_tokens"] == 200
    special = set(map(service.tokenizer.special_name, range(len(service.tokenizer))))
    text = [bytes(each["bytes"]) for each in scored if each["token"] not in special]
    assert b"".join(text).decode(errors="replace") == content
    assert sum(each["token"].startswith("bytes:") for each in scored) > 50, "parts of characters"
    lines = [line.removeprefix("data: ") for line in stream.split("\n\n") if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    streamed = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(streamed) == content
    assert echoed["choices"][0]["text"].startswith("🎉 def")
