"""The whole chain, tiny, on one Ray cluster: killed on the way, continued, then done for good."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from cluster.artifacts.manifest import verify
from cluster.artifacts.store import KINDS, ArtifactStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred modules of the standard library: text with functions in it."""
    folder = tmp_path_factory.mktemp("source")
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for path in [path for path in modules if path.stat().st_size < 40_000][:100]:
        shutil.copy(path, folder)
    return folder


def _start(root: Path, source: Path) -> subprocess.Popen[str]:
    arguments = ["quickstart", "--scale", "smoke", "--root", str(root), "--source", str(source)]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def _wait_for_checkpoint(root: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(root.glob("models/chat/*/checkpoints/writer")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "fine-tuning did not begin"
        time.sleep(0.1)


def test_the_chain_survives_a_kill_and_ends_with_a_report(tmp_path: Path, source: Path) -> None:
    root = tmp_path / "root"
    killed = _start(root, source)
    _wait_for_checkpoint(root, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    output, _ = (continued := _start(root, source)).communicate(timeout=240)
    assert continued.returncode == 0, output
    assert "Traceback" not in output
    base = next(line for line in output.splitlines() if "models/base/" in line)
    assert "already done" in base

    store = ArtifactStore(root)
    assert {artifact.kind for artifact in store.artifacts()} == set(KINDS)
    assert [problem for artifact in store.artifacts() for problem in verify(artifact)] == []
    _check_report(root)

    before = (root / "report.json").read_bytes()
    started = time.monotonic()
    output, _ = (again := _start(root, source)).communicate(timeout=60)
    assert again.returncode == 0, output
    assert output.count("already done") == len(json.loads(before)["artifacts"])
    assert "Ray" not in output, "a finished chain has no need of a cluster"
    assert (root / "report.json").read_bytes() == before
    assert time.monotonic() - started < 30


def _check_report(root: Path) -> None:
    report = json.loads((root / "report.json").read_text())
    for name in ("parse_rate", "win_rate"):
        rate = report[name]
        assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
        assert rate["n"] > 0
    assert report["heldout_bits_per_byte"]["unigram"] > 0
    assert report["heldout_bits_per_byte"]["base"] > 0
    assert set(report["seconds"]) >= {"corpus", "pretrain", "rlhf", "evaluate"}
    assert report["peak_memory_bytes"] > 2**27
    page = (root / "report.html").read_text()
    assert page.count("<svg") == 8
    assert "http" not in page.replace("http://www.w3.org", ""), "the page must not load anything"
