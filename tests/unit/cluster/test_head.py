"""`manta up` knows what it started, and starts nothing that is open or in another's place."""

import json
import os
import socket
from pathlib import Path

import psutil
import pytest

from cluster import connect, head
from cluster.errors import UserError

PORTS = {"port": 0, "dashboard_port": 0, "metrics_port": 0, "cpus": None}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder in which nothing was started, on a machine without a cluster."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(connect, "running_address", lambda: None)
    return tmp_path


def remember(home: Path, pid: int, created: float) -> None:
    (home / ".manta").mkdir(exist_ok=True)
    facts = {"pid": pid, "created": created, "address": "a", "dashboard": "b", "metrics": "c"}
    (home / ".manta/head.json").write_text(json.dumps(facts))


def test_a_process_of_another_time_with_the_same_number_is_not_ours(home: Path) -> None:
    created = psutil.Process().create_time()
    assert head.running_head() is None
    remember(home, os.getpid(), created)
    running = head.running_head()
    assert running is not None
    assert running.pid == os.getpid()
    remember(home, os.getpid(), created - 60)
    assert head.running_head() is None
    (home / ".manta/head.json").write_text("{")
    assert head.running_head() is None


def test_a_taken_port_is_named_with_its_flag() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--dashboard-port {port} is taken; choose another one, or 0"):
            head.start(**{**PORTS, "dashboard_port": port})


def test_it_starts_neither_open_nor_beside_another_cluster(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(connect, "running_address", lambda: "192.0.2.1:6379")
    with pytest.raises(UserError, match=r"did not start runs at 192\.0\.2\.1:6379"):
        head.start(**PORTS)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match=r"RAY_AUTH_MODE=disabled: .*unset the variable"):
        head.start(**PORTS)
    assert not (home / ".ray").exists()
