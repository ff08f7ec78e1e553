"""The routes. Nothing here knows Ray: `build_app(service)` is an ASGI app like any other."""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from pipelines.serve import chat_completions, completions
from pipelines.serve.errors import install_handlers, respond, unauthorised
from pipelines.serve.protocol import ChatRequest, CompletionRequest, Model, ModelList
from pipelines.serve.request_meter import RequestMeter
from pipelines.serve.service import Service

T = TypeVar("T")
logger = logging.getLogger(__name__)


def build_app(service: Service) -> FastAPI:
    """The API of one served model."""
    app = FastAPI(title="Manta", description="An OpenAI-compatible API for one model.", redoc_url=None)
    install_handlers(app)
    app.add_middleware(RequestMeter, meter=service.meter)

    def check_key(authorization: Annotated[str | None, Header()] = None) -> None:
        if service.key_digest is None:
            return
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        if scheme.lower() != "bearer" or not secrets.compare_digest(digest, service.key_digest):
            raise unauthorised()

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the engine runs, and how busy it is; needs no key."""
        failed = service.engine_loop.failure is not None
        body = {"status": "failed" if failed else "ok", "requests": service.engine_loop.load()}
        return JSONResponse(body, 503 if failed else 200)

    v1 = APIRouter(prefix="/v1", dependencies=[Depends(check_key)])

    @v1.get("/models")
    async def models() -> ModelList:
        """The one model there is."""
        return ModelList(data=[_model(service)])

    @v1.get("/models/{name:path}")
    async def model(name: str) -> Model:
        """The model, by name or NAME/VERSION."""
        service.check_model(name)
        return _model(service)

    @v1.post("/completions", response_model=None)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Continue texts."""
        call = completions.start(service, body)
        if body.stream:
            return _event_stream(completions.chunks(service, body, call))
        return await _unless_disconnected(request, completions.whole(service, body, call))

    @v1.post("/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        call = chat_completions.start(service, body)
        if body.stream:
            return _event_stream(chat_completions.chunks(service, body, call))
        return await _unless_disconnected(request, chat_completions.whole(service, body, call))

    app.include_router(v1)
    return app


def _model(service: Service) -> Model:
    return Model(id=service.model_name, created=service.created, max_model_len=service.max_seq_len)


def _event_stream(chunks: AsyncIterator[BaseModel]) -> StreamingResponse:
    """Server-sent events. An error after the first byte becomes an event, for the status is sent already."""

    async def events() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                yield f"data: {chunk.model_dump_json()}\n\n"
        except Exception as error:
            logger.exception("a stream failed")
            yield f"data: {bytes(respond(error).body).decode()}\n\n"
        yield "data: [DONE]\n\n"

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, BaseModel]) -> Response:
    """The work's result as JSON; if the client leaves first the work is cancelled, and its slots are free."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return Response(task.result().model_dump_json(), media_type="application/json")
        return Response(status_code=499)  # nobody reads it
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _disconnect(request: Request) -> None:
    """Returns when the client has gone; the body has been read by now, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
