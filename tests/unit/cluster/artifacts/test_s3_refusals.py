"""Answers that no server gives on purpose: refusals during whose bodies the connection is reset."""

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from cluster.artifacts.s3_storage import S3Storage

_NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Requests to a server that resets the first four answers in the middle of a 404, then sends it whole."""
    requests: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                requests.append(connection.recv(65536).decode().splitlines()[0])
                head = (
                    "HTTP/1.1 404 Not Found\r\nContent-Type: application/xml\r\n"
                    f"Connection: close\r\nContent-Length: {len(_NO_SUCH_KEY)}\r\n\r\n"
                )
                if len(requests) > 4:
                    connection.sendall(head.encode() + _NO_SUCH_KEY)
                    continue
                connection.sendall(head.encode() + _NO_SUCH_KEY[:20])
                time.sleep(0.1)  # what is under way when a connection is reset may be thrown away
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    yield requests
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_a_refusal_that_breaks_off_is_asked_for_again(asked: list[str]) -> None:
    storage = S3Storage.from_environment("bucket", "prefix")
    with pytest.raises(FileNotFoundError):
        storage.read("key")
    assert len(asked) == 5
    assert set(asked) == {"GET /bucket/prefix/key HTTP/1.1"}
