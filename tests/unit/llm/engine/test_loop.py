"""The engine's thread: many coroutines, abort, pause, weights and failure while it generates."""

import asyncio

import pytest
import torch

from llm.engine.engine import Engine
from llm.engine.loop import EngineLoop, EngineStoppedError, QueueFullError
from llm.engine.request import Request, RequestError, SamplingParams
from tests.unit.llm.engine.reference import generate_alone, lively_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return lively_model()


@pytest.fixture
def engine_loop(model):
    engine_loop = EngineLoop(Engine(model, max_batch=4, step_tokens=32), max_queued=8)
    yield engine_loop
    engine_loop.stop()


def request(name: str, max_tokens: int, seed: int = 0) -> Request:
    return Request(name, [9, 10 + seed, 30], SamplingParams(max_tokens, seed=seed))


async def collect(engine_loop: EngineLoop, *requests: Request) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {r.id: [] for r in requests}
    async with engine_loop.stream(requests) as stream:
        async for outputs in stream:
            for output in outputs:
                tokens[output.id] += output.token_ids
    return tokens


def test_concurrent_streams_each_get_their_own_tokens(model, engine_loop):
    requests = [request(f"r{i}", 5 + 3 * i, seed=i) for i in range(10)]

    async def main():
        calls = [collect(engine_loop, r) for r in requests[:8]] + [collect(engine_loop, *requests[8:])]
        return await asyncio.wait_for(asyncio.gather(*calls), 60)

    tokens = {name: ids for result in asyncio.run(main()) for name, ids in result.items()}
    for r in requests:
        assert tokens[r.id] == generate_alone(model, r.prompt_ids, r.params)[0]
    assert engine_loop.load() == 0


def test_leaving_a_stream_frees_its_slots(engine_loop):
    async def main():
        async with engine_loop.stream([request("a", 250), request("b", 250)]) as stream:
            async for _ in stream:
                break
        await asyncio.wrap_future(engine_loop.run(lambda engine: None))  # behind the aborts in the queue
        assert await asyncio.wrap_future(engine_loop.run(lambda engine: len(engine.scheduler.running))) == 0
        task = asyncio.create_task(collect(engine_loop, request("c", 250)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.wrap_future(engine_loop.run(lambda engine: engine.has_work())) is False
        assert engine_loop.load() == 0

    asyncio.run(main())


def test_aborting_one_of_several_ends_only_that_one(engine_loop):
    async def main():
        seen = set()
        async with engine_loop.stream([request("a", 250), request("b", 6)]) as stream:
            async for outputs in stream:
                seen |= {o.id for o in outputs}
                stream.abort("a")
        return seen

    assert asyncio.run(asyncio.wait_for(main(), 60)) == {"a", "b"}


def test_the_queue_is_bounded_and_bad_requests_start_nothing(engine_loop):
    async def main():
        engine_loop.run(lambda engine: engine.pause())
        async with engine_loop.stream([request(f"r{i}", 5) for i in range(12)]):
            with pytest.raises(QueueFullError, match="12 requests are running or waiting"):
                engine_loop.stream([request("more", 5)])
        with pytest.raises(RequestError, match="prompt is empty"):
            engine_loop.stream([request("a", 5), Request("b", [], SamplingParams(5))])
        assert engine_loop.load() == 0
        engine_loop.run(lambda engine: engine.resume())
        assert len((await collect(engine_loop, request("again", 5)))["again"]) == 5

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_step_that_raises_fails_everyone_with_the_cause(model):
    engine = Engine(model, max_batch=2, step_tokens=32)
    engine_loop = EngineLoop(engine, max_queued=2)

    async def main():
        engine_loop.run(lambda engine: engine.pause())
        call = asyncio.create_task(collect(engine_loop, request("a", 5)))
        await asyncio.sleep(0.01)
        engine.step = lambda: 1 / 0
        engine_loop.run(lambda engine: engine.resume())
        with pytest.raises(EngineStoppedError) as caught:
            await call
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        with pytest.raises(EngineStoppedError):
            engine_loop.stream([request("b", 5)])

    asyncio.run(asyncio.wait_for(main(), 60))
    assert isinstance(engine_loop.failure, ZeroDivisionError)
    engine_loop.stop()


def test_a_failing_command_fails_only_its_caller(engine_loop):
    with pytest.raises(ValueError, match="do not fit"):
        engine_loop.run(lambda engine: engine.update_weights({}, 1)).result(timeout=30)
    assert len(asyncio.run(collect(engine_loop, request("a", 5)))["a"]) == 5
