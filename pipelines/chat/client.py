"""The little of the OpenAI API that a chat needs."""

import json
from collections.abc import Iterator
from typing import Any

import httpx

from cluster.errors import UserError


class ChatClient:
    """Streams replies of one model.

    Raises UserError, in one line, when there is no server or it answers with an error.
    """

    def __init__(self, url: str, api_key: str | None, model: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # A reply may take as long as it takes; connecting may not.
        timeout = httpx.Timeout(None, connect=5)
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)
        self.model = model or self._first_model()

    def reply(self, messages: list[dict[str, str]], **parameters: Any) -> Iterator[str]:
        """Pieces of the reply as they are generated. Parameters that are None are left to the server."""
        body = {"model": self.model, "messages": messages, "stream": True}
        body |= {name: value for name, value in parameters.items() if value is not None}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    raise self._refusal(response)
                yield from _pieces(response.iter_lines())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _first_model(self) -> str:
        try:
            response = self._http.get("/v1/models")
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        except httpx.InvalidURL as error:
            raise UserError(f"--url {self.url} is not a URL: {error}") from error
        if response.is_error:
            raise self._refusal(response)
        try:
            return response.json()["data"][0]["id"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"what answers at {self.url} is no model server") from error

    def _unreachable(self, error: Exception) -> UserError:
        return UserError(f"no server at {self.url} ({error}); start one with `manta serve` or give its --url")

    def _refusal(self, response: httpx.Response) -> UserError:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, LookupError, TypeError):
            message = f"HTTP {response.status_code}"
        return UserError(f"{self.url} refused: {message}")


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """Texts in a stream of server-sent events."""
    for line in lines:
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise UserError(f"the server failed: {event['error']['message']}")
        for choice in event["choices"]:
            yield choice["delta"].get("content") or ""
