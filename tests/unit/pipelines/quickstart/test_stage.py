"""The report is on the chain that was asked for, and remembers what interrupted runs measured."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.artifacts.storage import open_storage
from cluster.connect import Cluster
from pipelines import cli
from pipelines.quickstart import stage
from pipelines.quickstart.config import QuickstartConfig
from pipelines.quickstart.memory import StagePeaks
from pipelines.quickstart.report import PAGE, REPORT, BitsPerByte, Rate, Report

RATE = Rate(value=0.5, low=0.4, high=0.6, n=10)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`run(scale)`: the quickstart with stages that only remember when they first ran."""
    made: dict[str, float] = {}
    calls = []

    def run_step(step, position, cluster, memory, peaks):
        ref = f"{step.stage}/{hash((step.config.name, step.config.model_dump_json()))}"
        if ref not in made:
            peaks.keep(ref, 1000 + len(made))
        started = made.setdefault(ref, time.time())
        return SimpleNamespace(ref=ref, run=lambda: {"started": started})

    def collect(steps, artifacts, peak_memory_bytes):
        calls.append(peak_memory_bytes)
        return Report(
            heldout_bits_per_byte=BitsPerByte(unigram=3, base=2),
            parse_rate=RATE,
            parse_rate_finetuned=RATE,
            win_rate=RATE,
            seconds={},
            peak_memory_bytes=peak_memory_bytes,
            artifacts=[artifact.ref for artifact in artifacts],
        )

    monkeypatch.setattr(stage, "_run_step", run_step)
    monkeypatch.setattr(stage, "collect", collect)

    def write_report(store, report):
        store.storage.write(PAGE, b"<html>")
        store.storage.write(REPORT, report.model_dump_json().encode())

    monkeypatch.setattr(stage, "write_report", write_report)

    def run(scale):
        return stage.run(QuickstartConfig(root=str(tmp_path), scale=scale), Cluster())

    run.calls = calls
    return run


def test_two_scales_in_one_root_have_a_report_each(run):
    full, smoke = run("full"), run("smoke")
    assert full.artifacts != smoke.artifacts
    assert run("full") == full, "not the report that happens to lie there"
    assert run("full") == full
    assert len(run.calls) == 3, "a report on the same artifacts is kept as it is"


def test_a_report_without_its_page_is_made_again(run, tmp_path):
    first = run("full")
    (tmp_path / PAGE).unlink()
    assert run("full") == first
    assert (tmp_path / PAGE).exists()


@pytest.mark.parametrize("content", ['{"of": "another version"}', "{", ""])
def test_a_report_of_another_version_is_made_again(content, run, tmp_path):
    first = run("full")
    (tmp_path / REPORT).write_text(content)
    assert run("full") == first
    assert Report.model_validate_json((tmp_path / REPORT).read_bytes()) == first


def test_a_source_that_is_not_there_is_named_as_the_user_did(tmp_path, capsys):
    root, source = str(tmp_path / "root"), str(tmp_path / "nowhere")
    assert cli.run(["quickstart", "--root", root, "--source", source]) == 2
    error = capsys.readouterr().err
    assert f"--source {source}: there is no such file or folder" in error
    assert "--paths" not in error


def test_peaks_outlive_the_run_that_measured_them(tmp_path):
    storage = open_storage(tmp_path)
    StagePeaks(storage).keep("models/base/1", 700)
    later = StagePeaks(storage)
    later.keep("models/chat/1", 300)
    assert StagePeaks(storage).highest(["models/base/1", "models/chat/1"]) == 700
    assert StagePeaks(storage).highest(["models/chat/1", "models/chat/2"]) == 300
    assert StagePeaks(open_storage(tmp_path / "new")).highest(["models/base/1"]) == 0
