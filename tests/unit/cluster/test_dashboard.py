"""Where jobs go: the dashboard is found, and what keeps us from it is one line."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import connect, dashboard
from cluster.addresses import is_this_machine
from cluster.errors import UserError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


class Guarded(http.server.BaseHTTPRequestHandler):
    """Answers as Ray's dashboard does: 401 without a token, 403 with another one."""

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization")
        status = {None: 401, "Bearer right": 200}.get(sent, 403)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps({"session_name": "session_1"}).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_address_goes_before_the_environment_and_that_before_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect, "running_address", lambda: None)
    with pytest.raises(UserError, match="start one with `manta up`, or give --address"):
        dashboard.find_dashboard(None)
    monkeypatch.setenv("RAY_ADDRESS", "http://a:1")
    assert dashboard.find_dashboard(None) == "http://a:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://b:1/")
    assert dashboard.find_dashboard(None) == "http://b:1"
    assert dashboard.find_dashboard("https://c") == "https://c"
    with pytest.raises(UserError, match=r"--address ray://d:1: give http://HOST:8265"):
        dashboard.find_dashboard("ray://d:1")


def test_a_dashboard_without_its_scheme_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "requires_token", lambda address: None)
    with pytest.raises(UserError, match=r"if that is its dashboard, write http://head:8265"):
        dashboard.find_dashboard("head:8265")


@pytest.mark.parametrize(
    "token, takes_us, words",
    [
        ("right", True, ""),
        ("wrong", False, "refuses our token"),
        ("", False, "wants a token and we send none"),
    ],
)
def test_whether_a_dashboard_takes_our_token(
    url: str, token: str, takes_us: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    seen = dashboard.look_at(url)
    assert seen is not None
    assert (seen.open, seen.takes_us) == (False, takes_us)
    if takes_us:
        assert dashboard.reach(url).session == "session_1"
    else:
        with pytest.raises(UserError, match=words):
            dashboard.reach(url)


def test_nobody_at_home() -> None:
    assert dashboard.look_at("http://127.0.0.1:9") is None
    with pytest.raises(UserError, match="no Ray dashboard answers at"):
        dashboard.reach("http://127.0.0.1:9")


def test_which_addresses_are_this_machine_s() -> None:
    assert is_this_machine("127.0.0.1")
    assert is_this_machine("localhost")
    assert not is_this_machine("192.0.2.200")
    assert not is_this_machine("no-such-host.invalid")
