"""Whoever handles a signal, a command that it ended says so with its exit code."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# A command that is ended by a signal, after something has put its own handlers in the place of ours.
PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs are told to ignore
from pipelines import cli

def command(name, arguments):
    {handlers}
    try:
        os.kill(os.getpid(), signal.{name})
        signal.pause()
    finally:
        print("closed")

cli._run_command = command
sys.exit(cli.run(["corpus"]))
"""


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize(
    "handlers",
    [
        "pass",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))",  # as Ray does when it joins a cluster
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(0))",  # as Ray Train does
    ],
)
def test_the_exit_code_is_the_signal_s(handlers: str, name: str, code: int) -> None:
    program = PROGRAM.format(handlers=handlers, name=name)
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert answer.returncode == code, answer.stderr
    assert answer.stdout == "closed\n"
    assert answer.stderr == f"manta: ended by {name}; the same command continues from here\n"


def test_without_a_signal_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    from pipelines.cli import run

    assert run(["--version"]) == 0
    assert run(["nonsense"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before
