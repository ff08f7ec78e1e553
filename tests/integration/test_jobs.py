"""`manta up`, jobs on it, and `manta down`: what was stopped continues, and no secret leaves its place."""

import json
import os
import random
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from cluster.artifacts.store import ArtifactStore
from cluster.head import Head

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {"WANDB_API_KEY": "wandb-s3cr3t", "AWS_SECRET_ACCESS_KEY": "aws-s3cr3t"}
Manta = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home folder of its own (its name is short, for sockets)."""
    with tempfile.TemporaryDirectory(prefix="manta-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def manta(home: Path) -> Iterator[Manta]:
    """The command, on a machine of its own where `manta up` has been said."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = inherited | SECRETS | {"HOME": str(home), "RAY_TMPDIR": str(home), "PYTHONPATH": str(ROOT)}

    def manta(
        *arguments: str, module: str = "pipelines.cli", **changes: str
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *(["-m", module] if module else []), *arguments]
        return subprocess.run(
            command, env=environment | changes, capture_output=True, text=True, timeout=300, cwd=home
        )

    try:
        answer = manta("up", "--port=0", "--dashboard-port=0", "--metrics-port=0", "--cpus=2")
        assert answer.returncode == 0, answer.stderr
        assert "Ray is up:" in answer.stdout
        yield manta
    finally:
        manta("down")


@pytest.fixture
def head(home: Path, manta: Manta) -> Head:
    return Head(**json.loads((home / ".manta/head.json").read_text()))


@pytest.fixture(scope="module")
def pipeline(home: Path) -> str:
    """A text and a pipeline of three stages, both named relative to where `manta` runs."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghij", k=generator.randint(2, 9))) for _ in range(500)]
    (home / "texts").mkdir()
    for number in range(40):
        (home / f"texts/{number:02}.txt").write_text(" ".join(generator.choices(words, k=200)))
    stages = [
        {"stage": "tokens", "name": "mine", "corpus": "mine", "tokenizer": "mine"},
        {"stage": "corpus", "name": "mine", "paths": ["texts"]},
        {"stage": "tokenizer", "name": "mine", "corpus": "mine", "vocab_size": 400},
    ]
    (home / "pipeline.yaml").write_text(yaml.safe_dump({"stages": stages}))
    return "pipeline.yaml"


def submitted_id(text: str) -> str:
    found = re.search(r"submitted (\S+) to", text)
    assert found, text
    return found[1]


def test_up_says_when_it_is_up_and_listens_here_alone_with_a_token(
    home: Path, manta: Manta, head: Head
) -> None:
    again = manta("up")
    assert again.returncode == 0
    assert "Ray was up already:" in again.stdout
    assert head.address in again.stdout
    main = psutil.Process(head.pid)
    listening = [
        connection.laddr.ip
        for process in [main, *main.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert stat.S_IMODE((home / ".ray/auth_token").stat().st_mode) == 0o600
    assert httpx.get(f"{head.dashboard}/api/jobs/").status_code == 401
    assert "ray_node_cpu_count" in httpx.get(head.metrics).text


def test_doctor_says_whether_the_authentication_agrees(home: Path, manta: Manta, head: Head) -> None:
    def findings(**changes: str) -> str:
        return manta(
            "-c", "import cluster.diagnosis as d; print(*d.ray_cluster())", module="", **changes
        ).stdout

    agreed = findings()
    assert f"{head.address} wants a token and takes ours" in agreed
    assert f"its dashboard, {head.dashboard}, wants a token and takes ours" in agreed
    assert f"{head.address} refuses our token" in findings(RAY_AUTH_TOKEN="0" * 64)
    assert "RAY_AUTH_MODE=disabled sends none: unset it" in findings(RAY_AUTH_MODE="disabled")


def test_a_job_is_followed_and_its_end_is_passed_on(home: Path, manta: Manta, pipeline: str) -> None:
    answer = manta("submit", "--env", "WANDB_API_KEY", "run", pipeline, "--root", "undisturbed")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "joined a running Ray cluster" in answer.stdout
    assert f"{submitted_id(answer.stdout)}: succeeded in" in answer.stdout
    plan = manta("run", pipeline, "--root", "undisturbed", "--dry-run")
    assert "nothing to do" in plan.stdout, plan.stdout + plan.stderr

    failed = manta("submit", "corpus", "--root", "undisturbed", "--paths", "nowhere")
    assert failed.returncode == 2
    error = failed.stderr.splitlines()[-1]
    assert re.match(
        r"manta: error: corpus-\w+ failed after .* \(exit code 2\): --paths .*nowhere: there is no", error
    )
    assert "Traceback" not in failed.stdout + failed.stderr


def test_a_stopped_job_continues_when_it_is_submitted_again(home: Path, manta: Manta, pipeline: str) -> None:
    job = submitted_id(manta("submit", "--detach", "run", pipeline, "--root", "stopped").stdout)
    deadline = time.monotonic() + 120
    while not list((home / "stopped").glob("corpora/mine/*/manifest.json")):
        assert time.monotonic() < deadline, manta("logs", job).stdout
        time.sleep(0.1)
    assert "stopped; submit the same again and it continues" in manta("stop", job[:-1]).stdout
    assert "had ended already" in manta("stop", job).stdout
    assert not list((home / "stopped").glob("tokens/mine/*/manifest.json"))

    again = manta("submit", "run", pipeline, "--root", "stopped")
    assert again.returncode == 0, again.stdout + again.stderr
    assert re.search(r"corpora/mine/\w+: already done", again.stdout)
    stores = [ArtifactStore(home / root) for root in ("undisturbed", "stopped")]
    manifests = [{a.ref: a.manifest for a in store.artifacts()} for store in stores]
    assert manifests[0] == manifests[1]
    assert len(manifests[0]) == 3

    listed = manta("jobs").stdout
    assert re.search(rf"^{job} +3 stages +stopped ", listed, re.MULTILINE)
    assert re.search(r"^corpus-\w+ +corpora/default +failed \(2\) ", listed, re.MULTILINE)
    assert manta("logs", "-f", job).stdout == manta("logs", job).stdout


def test_no_secret_is_in_what_others_may_read(home: Path, manta: Manta, head: Head) -> None:
    """Job metadata, logs of jobs, and artifacts; the names of variables are there."""
    token = (home / ".ray/auth_token").read_text()
    headers = {"Authorization": f"Bearer {token}"}
    readable = [httpx.get(f"{head.dashboard}/api/jobs/", headers=headers).text]
    readable += [path.read_text() for path in home.glob("ray/session_latest/logs/job-driver-*.log")]
    readable += [
        path.read_text(errors="replace") for path in (home / "undisturbed").rglob("*") if path.is_file()
    ]
    assert len(readable) > 10
    assert "WANDB_API_KEY" in readable[0]
    for secret in (*SECRETS.values(), token):
        assert not [text[:200] for text in readable if secret in text]


def test_down_stops_what_up_started_and_nothing_twice(home: Path, manta: Manta, head: Head) -> None:
    main = psutil.Process(head.pid)
    processes = [main, *main.children(recursive=True)]
    down = manta("down")
    assert down.returncode == 0, down.stderr
    assert f"stopped Ray at {head.address}" in down.stdout
    assert not psutil.wait_procs(processes, timeout=5)[1]
    assert "nothing to stop" in manta("down").stdout
    answer = manta("jobs")
    assert answer.returncode == 2
    assert "start one with `manta up`" in answer.stderr
