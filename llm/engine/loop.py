"""The engine in a thread of its own, answering to any number of coroutines.

    coroutines ──commands──► queue ──► [ commands, then step(), then deliver ] ──outputs──► mailboxes

Everything that touches the engine runs in its thread between two steps, as a command: abort, pause and
new weights are answered while it generates. A step's outputs wake each event loop once, not once per request,
and a slow consumer finds what piled up as one batch.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

from llm.engine.engine import Engine
from llm.engine.request import Output, Request

T = TypeVar("T")


class QueueFullError(RuntimeError):
    """As many requests as are allowed are running or waiting."""


class EngineStoppedError(RuntimeError):
    """The engine's thread has ended: it was stopped, or a step raised."""


class EngineLoop:
    """Runs `engine` in a daemon thread until `stop()`.

    Args:
        engine: not to be touched by others from here on, except through `run`.
        max_queued: most requests beyond the engine's slots. More are refused with QueueFullError.
    """

    def __init__(self, engine: Engine, max_queued: int) -> None:
        self._engine = engine
        self._capacity = engine.scheduler.max_batch + max_queued
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._streams: dict[str, Stream] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self.failure: BaseException | None = None
        """What ended the thread, if it was not stop()."""
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def run(self, command: Callable[[Engine], T]) -> "Future[T]":
        """Call `command(engine)` in the engine's thread between two steps; the future has its result."""
        future: Future[T] = Future()

        def execute() -> None:
            try:
                future.set_result(command(self._engine))
            except BaseException as error:
                future.set_exception(error)

        self._commands.put(execute)
        return future

    def stream(self, requests: Sequence[Request]) -> "Stream":
        """Start requests from a coroutine; iterate over the result for their outputs.

        Raises RequestError if one can never run, QueueFullError if all of them do not fit, and
        EngineStoppedError; then none is started.
        """
        for request in requests:
            self._engine.check(request)
        with self._lock:
            if self._stopping:
                raise EngineStoppedError("the engine has stopped") from self.failure
            if len(self._streams) + len(requests) > self._capacity:
                raise QueueFullError(f"{len(self._streams)} requests are running or waiting; try again later")
            stream = Stream(self, requests)
            for request in requests:
                self._streams[request.id] = stream

        def add_all(engine: Engine) -> None:
            for request in requests:
                engine.add(request)

        self.run(add_all)
        return stream

    def abort(self, request_id: str) -> None:
        """Drop a request and free its slot after the current step. Unknown ids are ignored."""
        with self._lock:
            self._streams.pop(request_id, None)
        self.run(lambda engine: engine.abort(request_id))

    def load(self) -> int:
        """Requests running or waiting."""
        return len(self._streams)

    def stop(self) -> None:
        """End the thread after the current step; streams under way raise EngineStoppedError."""
        self._end(None)
        self._commands.put(lambda: None)
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._stopping:
                self._run_commands(wait=self._engine.paused or not self._engine.has_work())
                self._deliver(self._engine.step())
        except BaseException as error:
            self._end(error)

    def _run_commands(self, wait: bool) -> None:
        if wait:
            self._commands.get()()
        while True:
            try:
                command = self._commands.get_nowait()
            except Empty:
                return
            command()

    def _deliver(self, outputs: list[Output]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Output]]] = defaultdict(list)
        with self._lock:
            for output in outputs:
                stream = self._streams.get(output.id)
                if stream is None:
                    continue
                by_loop[stream.event_loop].append((stream, output))
                if output.finish_reason is not None:
                    del self._streams[output.id]
        for event_loop, deliveries in by_loop.items():
            _call_in(event_loop, _put_all, deliveries)

    def _end(self, failure: BaseException | None) -> None:
        with self._lock:
            self._stopping = True
            self.failure = self.failure or failure
            streams = set(self._streams.values())
            self._streams.clear()
        for stream in streams:
            _call_in(stream.event_loop, stream._fail, failure)


class Stream(AsyncIterator[list[Output]]):
    """The outputs of some requests, in batches of whatever came since the last look.

    Use as `async with`: leaving it, for whatever reason, aborts what is unfinished.
    """

    def __init__(self, engine_loop: EngineLoop, requests: Sequence[Request]) -> None:
        self.event_loop = asyncio.get_running_loop()
        self._engine_loop = engine_loop
        self._unfinished = {request.id for request in requests}
        self._outputs: list[Output] = []
        self._wake = asyncio.Event()
        self._error: EngineStoppedError | None = None

    def abort(self, request_id: str) -> None:
        """Want no more of one request."""
        if request_id in self._unfinished:
            self._unfinished.discard(request_id)
            self._engine_loop.abort(request_id)
            self._wake.set()

    async def __anext__(self) -> list[Output]:
        while not self._outputs:
            if not self._unfinished:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        outputs, self._outputs = self._outputs, []
        fresh = [output for output in outputs if output.id in self._unfinished]
        for output in fresh:
            if output.finish_reason is not None:
                self._unfinished.discard(output.id)
        return fresh

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *exception: object) -> None:
        for request_id in list(self._unfinished):
            self.abort(request_id)

    def _put(self, output: Output) -> None:
        self._outputs.append(output)
        self._wake.set()

    def _fail(self, failure: BaseException | None) -> None:
        self._error = EngineStoppedError("the engine stopped while it generated")
        self._error.__cause__ = failure
        self._wake.set()


def _put_all(deliveries: list[tuple[Stream, Output]]) -> None:
    for stream, output in deliveries:
        stream._put(output)


def _call_in(
    event_loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object
) -> None:
    """call_soon_threadsafe, except that a loop which has been closed needs no call any more."""
    try:
        event_loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        if not event_loop.is_closed():
            raise
