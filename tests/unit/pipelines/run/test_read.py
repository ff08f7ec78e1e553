"""`manta run`: a pipeline is checked as a whole, ordered by its artifacts, and its plan says what exists."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from pipelines.cli import STAGES, config_class, run
from pipelines.model_options import ModelOptions
from pipelines.pretrain.config import PretrainConfig
from pipelines.quickstart.chain import chain
from pipelines.quickstart.config import QuickstartConfig
from pipelines.run.plan import check
from pipelines.run.read import Pipeline, as_yaml, read_pipeline
from pipelines.run.signatures import SIGNATURES

CORPUS = {"stage": "corpus", "name": "mine", "source": "python-stdlib"}
TOKENIZER = {"stage": "tokenizer", "name": "mine", "corpus": "mine", "vocab_size": 512}
TOKENS = {"stage": "tokens", "name": "mine", "corpus": "mine", "tokenizer": "mine"}
PRETRAIN = {"stage": "pretrain", "name": "base", "tokens": "mine"}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(content: Any) -> str:
        file = tmp_path / "pipeline.yaml"
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(file)

    return write


def read(file: str, root: Path) -> Pipeline:
    pipeline = read_pipeline(file, root=str(root))
    check(pipeline, ArtifactStore(root))
    return pipeline


def test_stages_run_after_those_that_make_what_they_read(write: Any, tmp_path: Path) -> None:
    pipeline = read(write({"stages": [PRETRAIN, TOKENS, TOKENIZER, CORPUS]}), tmp_path)
    assert [step.stage for step in pipeline.steps] == ["corpus", "tokenizer", "tokens", "pretrain"]
    independent = [CORPUS, {**CORPUS, "name": "other"}, TOKENIZER]
    pipeline = read(write({"stages": independent}), tmp_path)
    assert [step.makes for step in pipeline.steps] == ["corpora/mine", "corpora/other", "tokenizers/mine"]


@pytest.mark.parametrize(
    "stages, message",
    [
        ([{"stage": "tokeniser"}], r"stage 1: 'tokeniser' is no stage; did you mean tokenizer\?"),
        ([CORPUS, {"stage": "serve"}], r"stage 2: 'serve' makes no artifact; stages are corpus, "),
        ([{"name": "mine"}], "stage 1: expected `stage: NAME`"),
        ([CORPUS, {**TOKENIZER, "vocab": 5}], r"stage 2 \(tokenizer\): unknown field 'vocab'; .*vocab_size"),
        ([{**CORPUS, "min_chars": 0}], r"stage 1 \(corpus\): min_chars: .*\(got 0\)"),
        ([{**CORPUS, "root": "x"}], r"stage 1 \(corpus\): 'root' is the same for all stages"),
        (
            [CORPUS, {**PRETRAIN, "optimizer": {"learning_rate": -1}}],
            r"optimizer: learning_rate: .*\(got -1\)",
        ),
        ([CORPUS, {**PRETRAIN, "model": {"preset": "nope"}}], r"stage 2 \(pretrain\): .*nope"),
        ([CORPUS, CORPUS], r"stage 2 \(corpus\): corpora/mine is made by .*stage 1 \(corpus\) already"),
        ([TOKENIZER], r"stage 1 \(tokenizer\): no corpora/mine under"),
        ([CORPUS, {**TOKENS, "tokenizer": "absent"}], r"stage 2 \(tokens\): no tokenizers/absent under"),
        ([{"stage": "corpus", "name": "c", "paths": ["/nowhere/*"]}], r"stage 1 \(corpus\): .*nowhere"),
        (
            [
                {"stage": "finetune", "name": "a", "base": "b", "corpus": "c"},
                {"stage": "finetune", "name": "b", "base": "a", "corpus": "c"},
            ],
            r"wait for each other: models/\w → models/\w → models/\w;",
        ),
        ([], "`stages` must be a list of stages"),
    ],
)
def test_a_mistake_anywhere_is_one_line_before_anything_starts(
    write: Any, tmp_path: Path, stages: list[Any], message: str
) -> None:
    file = write({"stages": stages})
    with pytest.raises(UserError, match=message) as caught:
        read(file, tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith((file, f"manta run {file}"))
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "content, message", [("a: [", "not YAML"), ("- 1", "found a list"), ("steps: 1", "'steps'")]
)
def test_a_file_that_is_no_pipeline(write: Any, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_pipeline(write(content))


def test_a_partial_option_keeps_the_other_defaults_of_its_stage(write: Any) -> None:
    """Fine-tuning has a learning rate of its own, which a file that sets the decay alone must not undo."""
    stage = {"stage": "finetune", "name": "chat", "optimizer": {"weight_decay": 0.05}}
    (step,) = read_pipeline(write({"stages": [stage]})).steps
    optimizer = step.config.optimizer  # type: ignore[attr-defined]
    assert optimizer.weight_decay == 0.05
    default = config_class(STAGES["finetune"])().optimizer
    assert optimizer == default.model_copy(update={"weight_decay": 0.05})


def test_what_travels_with_a_job_says_the_same(write: Any, tmp_path: Path) -> None:
    model = ModelOptions(preset="tiny-100k")
    stages = [{**PRETRAIN, "model": {"preset": "tiny-100k"}, "steps": 7}, TOKENS, TOKENIZER, CORPUS]
    pipeline = read_pipeline(write({"root": "runs/x", "stages": stages}))
    again = read_pipeline(write(as_yaml(pipeline)))
    assert [step.config for step in again.steps] == [step.config for step in pipeline.steps]
    assert again.steps[-1].config == PretrainConfig(
        root="runs/x", name="base", tokens="mine", steps=7, model=model
    )


def test_signatures_order_the_quickstart_as_it_is_written() -> None:
    """The quickstart's chain was written by hand: everything in it is made before it is read."""
    made: set[str] = set()
    for step in chain(QuickstartConfig()):
        signature = SIGNATURES[step.stage]
        for field, kind in signature.reads.items():
            assert field in type(step.config).model_fields
            name = getattr(step.config, field)
            assert name is None or f"{kind}/{name}" in made
        made.add(f"{signature.makes}/{step.config.name}")
    assert set(SIGNATURES) == set(STAGES) - {"quickstart", "serve"}


def test_the_command_says_mistakes_in_one_line(
    write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", write({"stages": [TOKENIZER]}), "--root", str(tmp_path / "root"), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("manta: error: ")
    assert error.count("\n") == 1
    assert run(["run", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml: No such file" in capsys.readouterr().err
