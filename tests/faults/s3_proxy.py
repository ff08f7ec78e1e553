"""A proxy in front of an S3 server that fails now and then, as networks and servers do."""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["unavailable", "slow down", "reset", "truncated", "lost answer"]

FAULTS: tuple[Fault, ...] = ("unavailable", "slow down", "reset", "truncated", "lost answer")
"""503 ServiceUnavailable; 503 SlowDown; the connection is cut before the request is forwarded; the answer's
body ends too early; the request is carried out and its answer never arrives.
"""

_OURS = {"transfer-encoding", "connection", "content-length", "server", "date"}
"""Headers that this server sends itself."""


class FaultyS3:
    """Forwards to the server on `port`, but fails a share `rate` of requests, and all during an outage.

    before_upload: told the path of each object, or part of one, that has arrived here and not yet there.
    """

    def __init__(
        self,
        port: int,
        rate: float,
        seed: int,
        faults: tuple[Fault, ...] = FAULTS,
        before_upload: Callable[[str], None] = lambda path: None,
    ) -> None:
        self.rate, self.faults, self.before_upload = rate, faults, before_upload
        self.injected: Counter[str] = Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._outage_until = 0.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, port))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def outage(self, seconds: float) -> None:
        """Answer nothing but 503 from now on, for so long."""
        self._outage_until = time.monotonic() + seconds

    def choose(self) -> Fault | None:
        """What happens to the next request."""
        with self._lock:
            if time.monotonic() < self._outage_until:
                fault: Fault | None = "unavailable"
            else:
                fault = self._random.choice(self.faults) if self._random.random() < self.rate else None
            if fault is not None:
                self.injected[fault] += 1
            return fault

    @contextmanager
    def running(self) -> Iterator["FaultyS3"]:
        """Serve for the length of the block."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


def _handler(proxy: FaultyS3, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            fault = proxy.choose()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault == "reset":
                self._cut()
                return
            if fault in ("unavailable", "slow down"):
                self._refuse("ServiceUnavailable" if fault == "unavailable" else "SlowDown")
                return
            if self.command == "PUT":
                proxy.before_upload(self.path)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                # The Host header is signed: it stays as the client sent it.
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            if fault == "lost answer":
                self._cut()
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (
                    "transfer-encoding",
                    "connection",
                    "content-length",
                    "server",
                    "date",
                ):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") or str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            if fault == "truncated" and len(content) > 1:
                self.wfile.write(content[: len(content) // 2])
                self._cut()
                return
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

        def _refuse(self, code: str) -> None:
            content = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            self.send_response(503)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _cut(self) -> None:
            """Close with a reset, without a word."""
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError, ValueError):  # it was cut, by us or by the client
                super().handle()

    return Handler
