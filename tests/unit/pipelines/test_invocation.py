"""The command that is printed is one that the shell finds from here."""

import sys
from pathlib import Path

import pytest

from pipelines.invocation import invocation


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """.venv/bin/manta below the working directory, which is what runs."""
    script = tmp_path / ".venv" / "bin" / "manta"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(sys, "argv", [str(script), "quickstart"])
    return script


def test_by_its_path_where_the_shell_does_not_find_it(script, monkeypatch):
    assert invocation() == ".venv/bin/manta"
    monkeypatch.chdir(script.parents[2] / "a b")
    assert invocation() == str(script)


def test_by_its_name_where_the_shell_finds_it_and_not_another(script, monkeypatch):
    monkeypatch.setenv("PATH", str(script.parent))
    assert invocation() == "manta"
    other = script.parents[2] / "a b" / "manta"
    script.rename(other)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(other)])
    assert invocation() == "'a b/manta'"


def test_as_a_module_where_it_was_started_so(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/pipelines/cli.py"])
    monkeypatch.setattr(sys, "executable", "/opt/python")
    assert invocation() == "/opt/python -m pipelines.cli"
