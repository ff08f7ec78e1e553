"""A stage joins the cluster of `ray start --head`, with token authentication, and leaves it running."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.artifacts.store import ArtifactStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """A machine of its own: home with a token, temporary folder (short, for sockets), running head node."""
    with tempfile.TemporaryDirectory(prefix="manta-", ignore_cleanup_errors=True) as folder:
        token = Path(folder, ".ray", "auth_token")
        token.parent.mkdir()
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = inherited | {"HOME": folder, "RAY_TMPDIR": folder, "PYTHONPATH": str(ROOT)}
        ray = str(Path(sys.executable).with_name("ray"))
        head = subprocess.Popen(
            [ray, "start", "--head", "--block", "--port=0", "--num-cpus=2", "--include-dashboard=false"],
            env=environment | {"RAY_AUTH_MODE": "token"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for(Path(folder, "ray", "ray_current_cluster"))
            yield environment
        finally:
            os.killpg(head.pid, signal.SIGKILL)  # A graceful end waits half a minute for nothing.
            head.wait()


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.2)


def _manta(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)


def test_a_stage_joins_and_leaves_the_cluster_running(environment: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    for number in range(20):
        (source / f"{number}.txt").write_text(f"document number {number}\n" * 5)
    for name, seed in (("one", "0"), ("two", "1")):
        arguments = ["corpus", "--root", str(tmp_path / "root"), "--name", name, "--paths", str(source)]
        answer = _manta(environment, *arguments, "--split-seed", seed)
        assert answer.returncode == 0, answer.stderr
        assert "joined a running Ray cluster" in answer.stdout
    assert ArtifactStore(tmp_path / "root").resolve("corpora", "two").counts["documents"] == 20


def test_doctor_sees_the_cluster_and_its_authentication(environment: dict[str, str]) -> None:
    answer = _manta(environment, "doctor")
    assert "a Ray cluster runs at" in answer.stdout
    assert "token authentication on our side" in answer.stdout
    stranger = environment | {"HOME": "/nonexistent"}
    assert "wants a token and we send none" in _manta(stranger, "doctor").stdout


def test_joining_without_the_token_is_one_clear_line(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    stranger = environment | {"HOME": "/nonexistent"}
    answer = _manta(stranger, "corpus", "--root", str(tmp_path / "root"), "--paths", str(tmp_path / "a.txt"))
    assert answer.returncode == 2
    assert "wants a token" in answer.stderr
    assert "Traceback" not in answer.stderr
