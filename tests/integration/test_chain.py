"""The whole chain, tiny, on one Ray cluster: killed on the way, continued, then done for good."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.artifacts.manifest import verify
from cluster.artifacts.store import KINDS, ArtifactStore
from pipelines.quickstart.chain import chain
from pipelines.quickstart.config import QuickstartConfig
from pipelines.run.plan import plan
from pipelines.run.read import Pipeline, Step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty modules of the standard library: text with functions in it."""
    folder = tmp_path_factory.mktemp("source")
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for path in [path for path in modules if path.stat().st_size < 40_000][:60]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def start(source: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """`start()` runs the quickstart, small, in `tmp_path/root`; what still runs at the end is killed."""
    arguments = ["--scale", "smoke", "--root", str(tmp_path / "root"), "--source", str(source)]
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "quickstart", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_checkpoint(root: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not list(root.glob("models/chat/*/checkpoints/writer")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "fine-tuning did not begin"
        time.sleep(0.1)


@pytest.mark.timeout(900)  # four minutes on an idle machine of two cores
def test_the_chain_survives_a_kill_and_ends_with_a_report(
    tmp_path: Path, source: Path, start: Callable[[], subprocess.Popen[str]]
) -> None:
    root = tmp_path / "root"
    killed = start()
    _wait_for_checkpoint(root, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    output, _ = (continued := start()).communicate(timeout=500)
    assert continued.returncode == 0, output
    assert "Traceback" not in output
    base = next(line for line in output.splitlines() if "models/base/" in line)
    assert "already done" in base

    store = ArtifactStore(root)
    assert {artifact.kind for artifact in store.artifacts()} == set(KINDS)
    assert [problem for artifact in store.artifacts() for problem in verify(artifact)] == []
    _check_report(root)
    _check_plan(root, source)

    before = (root / "report.json").read_bytes()
    started = time.monotonic()
    output, _ = (again := start()).communicate(timeout=120)
    assert again.returncode == 0, output
    assert output.count("already done") == len(json.loads(before)["artifacts"])
    assert "Ray" not in output, "a finished chain has no need of a cluster"
    assert (root / "report.json").read_bytes() == before
    assert time.monotonic() - started < 30
    _check_printed_command(output)


def _check_plan(root: Path, source: Path) -> None:
    """`manta run --dry-run` computes for every stage the version that the stage has made."""
    steps = chain(QuickstartConfig(root=str(root), scale="smoke", source=str(source)))
    pipeline = Pipeline("", str(root), tuple(Step(each.title, each.stage, each.config) for each in steps))
    planned = plan(pipeline, store := ArtifactStore(root))
    assert {each.artifact.ref for each in planned if each.artifact} == {a.ref for a in store.artifacts()}


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
    loading = [mark for mark in ("src=", "href=", "<script", "url(", "@import") if mark in _markup(page)]
    assert not loading, "the page must not load anything"


def _markup(page: str) -> str:
    """The page without the models' answers, which may spell anything."""
    return re.sub(r"(<pre\b[^>]*>).*?(</pre>)", r"\1\2", page, flags=re.DOTALL).lower()


def _check_printed_command(output: str) -> None:
    """`look` is to be typed as it stands, in the directory in which the quickstart was."""
    (look,) = (line.split(maxsplit=1)[1] for line in output.splitlines() if line.startswith("  look "))
    shown = subprocess.run(look, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "models/aligned" in shown.stdout
