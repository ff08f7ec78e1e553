"""The command line: instant help, YAML and flags, one clear line for a mistake, before Ray starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster.errors import UserError
from pipelines.cli import COMMANDS, run
from pipelines.command_line import parse
from pipelines.pretrain.config import PretrainConfig
from pipelines.stage_config import StageConfig

ROOT = Path(__file__).resolve().parents[3]


def parsed(*arguments: str) -> PretrainConfig:
    config = parse(PretrainConfig, "pretrain", list(arguments))
    assert config is not None
    return config


def test_flags_override_the_file_which_overrides_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"steps": 7, "seq_len": 64, "optimizer": {"learning_rate": 0.5}}))
    config = parsed("--config", str(file), "--seq-len", "32")
    assert (config.steps, config.seq_len) == (7, 32)
    assert config.optimizer.learning_rate == 0.5
    assert config.optimizer.beta2 == PretrainConfig().optimizer.beta2


def test_how_is_not_part_of_what() -> None:
    one, other = parsed("--workers", "1"), parsed("--workers", "2", "--root", "elsewhere", "--name", "n")
    assert one.what() == other.what()
    assert one.how() != other.how()
    assert parsed("--steps", "3").what() != one.what()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--stepz", "3"], "did you mean --steps"),
        (["--steps", "abc"], "abc"),
        (["--steps", "-3"], "greater than 0 (got -3)"),
        (["--config", "nofile.yaml"], "nofile.yaml"),
        (["--config"], "needs a file name"),
        (["--optimizer.min-learning-rate", "9"], "min_learning_rate=9"),
        (["--document-mask", "--model.preset", "bert-base"], "bert-base is none; see"),
        (["--optimizer.decay", "wdx"], "error: invalid choice 'wdx'"),
        (["--model.n-heads", "7"], "error: model: d_model=192 over n_heads=7"),
        (["--tokens", "absent"], "no tokens/absent"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["pretrain", "--root", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("manta: error: ")
    assert error.count("\n") == 1
    assert words in error
    assert "Value error" not in error


@pytest.mark.parametrize(
    "content, words", [("stps: 1", "stps"), ("steps: -1", "steps"), ("[1]", "list"), ("a: [", "YAML")]
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        parsed("--config", str(file))
    assert str(file) in str(caught.value)


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrian"]) == 2
    assert "did you mean `manta pretrain`" in capsys.readouterr().err


def test_print_config_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "--steps", "9", "--model.preset", "tiny-100k", "--print-config"]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parsed("--config", str(file)) == parsed("--steps", "9", "--model.preset", "tiny-100k")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_every_option_is_explained(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        run([name, "--help"])
    assert stop.value.code in (0, None)
    text = capsys.readouterr().out
    assert f"manta {name}" in text
    bare = [
        line for line in text.splitlines() if line.startswith("│ --") and line.rstrip("│ ").endswith("──")
    ]
    assert not bare


def test_help_is_instant_and_light() -> None:
    heavy = "[m for m in ('torch', 'ray', 'tyro') if m in sys.modules]"
    code = f"import sys; from pipelines.cli import run; run(['--help']); print({heavy})"
    started = time.monotonic()
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert answer.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - started < 5  # Far above the 0.1 s it takes; a guard against heavy imports only.


def test_options_common_to_stages() -> None:
    assert {"root", "name", "address", "force"} == set(StageConfig.model_fields)


def test_an_error_from_an_actor_is_the_line_that_it_raised(monkeypatch, capsys):
    """Ray wraps it in a class whose text is a traceback."""
    from ray.exceptions import RayTaskError

    def fail(name, arguments):
        wrapped = RayTaskError("learn", "Traceback ...\nUserError: mend it", UserError("mend it"))
        raise wrapped.as_instanceof_cause()

    monkeypatch.setattr("pipelines.cli._run_command", fail)
    assert run(["corpus"]) == 2
    assert capsys.readouterr().err == "manta: error: mend it\n"


@pytest.mark.parametrize("arguments", [["models", "--json"], ["models", "gpt2"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: list[str]) -> None:
    """As in `manta models --json | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")
