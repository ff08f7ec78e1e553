"""Counts requests to the two endpoints that generate, by the status that ended them. ASGI middleware."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serve.meter import Meter

_ENDPOINTS = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}
_CLIENT_LEFT = 499


class RequestMeter:
    """Wraps the app. A response that was begun but not finished counts as 499: its client left."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self._app, self._meter = app, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = _ENDPOINTS.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        began, status, whole = time.perf_counter(), 0, False

        async def watched_send(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            if message["type"] == "http.response.body":
                whole = not message.get("more_body", False)

        try:
            await self._app(scope, receive, watched_send)
        except Exception:
            status, whole = status or 500, True  # a handler further out answers
            raise
        finally:
            self._meter.answered(endpoint, status if whole else _CLIENT_LEFT, time.perf_counter() - began)
