"""One writer: whoever commits held the lease until that moment."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.artifacts import lease as lease_module
from cluster.artifacts.folder import Folder
from cluster.artifacts.lease import Lease, LeaseLost
from cluster.artifacts.storage import open_storage
from cluster.errors import UserError

HOLD = """
import sys, time
from cluster.artifacts.folder import Folder
from cluster.artifacts.lease import Lease
from cluster.artifacts.storage import open_storage
lease = Lease(Folder(open_storage(sys.argv[1]), "leases"), "a.json", "corpora/a")
lease.acquire()
print("held", flush=True)
sys.stdin.readline()
try:
    lease.commit({"by": "the first"})
    print("committed", flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(open_storage(tmp_path), "leases")


@pytest.fixture
def other_process(tmp_path: Path):
    """Holds the lease; commits when it is told to on its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_living_holder_is_named(folder: Folder, other_process, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[str] = []
    with pytest.raises(UserError, match=f"being made by process {other_process.pid} on"):
        Lease(folder, "a.json", "corpora/a").acquire(announced.append)
    assert "waiting to see whether it is alive" in announced[0]
    answer, _ = other_process.communicate("commit\n", timeout=20)
    assert answer == "committed\n"
    assert Lease(folder, "a.json", "corpora/a").acquire() == {"by": "the first"}


def test_a_killed_holder_is_followed_at_once(folder: Folder, other_process) -> None:
    other_process.kill()  # not reaped: the process is a zombie as long as its parent does not ask
    time.sleep(0.2)
    started = time.monotonic()
    lease = Lease(folder, "a.json", "corpora/a")
    lease.acquire()
    assert time.monotonic() - started < 2
    assert lease.token == 2
    lease.commit({})


def test_a_holder_paused_until_its_lease_was_taken_cannot_commit(
    folder: Folder, other_process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "TTL_SECONDS", 1.0)
    os.kill(other_process.pid, 19)  # SIGSTOP
    lease = Lease(folder, "a.json", "corpora/a")
    lease.acquire()
    os.kill(other_process.pid, 18)  # SIGCONT
    answer, _ = other_process.communicate("commit\n", timeout=20)
    assert answer.startswith("LeaseLost")
    assert f"process {os.getpid()}" in answer
    lease.commit({"by": "the second"})
    assert Lease(folder, "a.json", "corpora/a").acquire() == {"by": "the second"}


def test_storage_that_keeps_a_contender_waiting_is_no_silence_of_the_holder(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "TTL_SECONDS", 1.0)
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.2)
    held = {
        "state": "held",
        "token": 1,
        "tenure": "theirs",
        "holder": {"machine": "m", "pid": 7, "host": "h"},
    }
    first, renewed = (json.dumps(held | {"renewal": number}).encode() for number in (1, 2))
    folder.write("a.json", first)
    answers = [(0.0, first), (1.5, first), (0.0, renewed)]

    def read(folder: Folder, name: str) -> bytes:
        seconds, content = answers.pop(0)
        time.sleep(seconds)
        return content

    monkeypatch.setattr(lease_module, "_read", read)
    with pytest.raises(UserError, match="being made by process 7 on h"):
        Lease(folder, "a.json", "corpora/a").acquire()


def test_a_ticket_is_void_once_the_lease_is_taken(folder: Folder) -> None:
    first, second = (Lease(folder, "a.json", "corpora/a") for _ in range(2))
    first.acquire()
    ticket = first.ticket
    assert ticket.is_current()
    second.acquire()  # this very process may follow itself: the draft of a failed stage stays behind
    assert not ticket.is_current()
    with pytest.raises(LeaseLost, match=f"process {os.getpid()} on .* has taken this run over"):
        ticket.check()
    with pytest.raises(LeaseLost):
        first.commit({})
    assert second.ticket.is_current()
    second.release()


def test_renewals_show_life(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.05)
    lease = Lease(folder, "a.json", "corpora/a")
    lease.acquire()
    seen = set()
    for _ in range(20):
        seen.add(json.loads(folder.read("a.json"))["renewal"])
        time.sleep(0.05)
    assert len(seen) > 5
    lease.release()
    assert json.loads(folder.read("a.json"))["state"] == "released"


def test_a_lease_that_is_removed_while_leases_are_listed_is_nobodys(
    folder: Folder, other_process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "files", lambda self: {"a.json": 1, "gone.json": 1})
    assert [(name, inputs) for name, _, inputs in lease_module.at_work(folder)] == [("a.json", [])]
