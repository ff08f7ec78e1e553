"""Every failure as an OpenAI-shaped error object with the right status."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llm.engine.loop import EngineStoppedError, QueueFullError
from llm.engine.request import RequestError
from pipelines.serve.protocol import ErrorBody, error_json


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, body: ErrorBody) -> None:
        super().__init__(body.message)
        self.status, self.body = status, body


def invalid(message: str, param: str | None = None) -> ApiError:
    """400: the request makes no sense."""
    return ApiError(400, ErrorBody(message=message, type="invalid_request_error", param=param))


def unknown_model(model: str, served: str) -> ApiError:
    """404: a model that is not served here."""
    message = f"the model {model!r} does not exist here; this server has {served!r}"
    return ApiError(
        404, ErrorBody(message=message, type="invalid_request_error", param="model", code="model_not_found")
    )


def unauthorised() -> ApiError:
    """401: no key, or not the right one."""
    message = "no valid API key: send the server's MANTA_API_KEY as `Authorization: Bearer KEY`"
    return ApiError(401, ErrorBody(message=message, type="authentication_error", code="invalid_api_key"))


def respond(error: Exception) -> JSONResponse:
    """The response for any exception of ours."""
    if isinstance(error, RequestError):
        error = invalid(str(error))
    elif isinstance(error, QueueFullError):
        error = ApiError(429, ErrorBody(message=str(error), type="rate_limit_error", code="queue_full"))
    elif isinstance(error, EngineStoppedError):
        error = ApiError(503, ErrorBody(message=str(error), type="server_error", code="engine_stopped"))
    if not isinstance(error, ApiError):
        error = ApiError(500, ErrorBody(message="the server failed; its log says why", type="server_error"))
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error_json(error.body), error.status, headers)


def install_handlers(app: FastAPI) -> None:
    """Make `app` answer with error objects, its own validation and routing included."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        return respond(error)

    async def validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        return respond(invalid(f"{'.'.join(place) or 'body'}: {first['msg']}", place[0] if place else None))

    async def routing(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        body = ErrorBody(message=str(error.detail), type="invalid_request_error")
        return respond(ApiError(error.status_code, body))

    for kind in (ApiError, RequestError, QueueFullError, EngineStoppedError, Exception):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, routing)
