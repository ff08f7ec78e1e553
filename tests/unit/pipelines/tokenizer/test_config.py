"""Weights of sources on the command line and in a file."""

from pathlib import Path

import pytest

from cluster.errors import UserError
from pipelines.command_line import parse
from pipelines.tokenizer.config import TokenizerConfig


def parsed(*arguments: str) -> TokenizerConfig:
    config = parse(TokenizerConfig, "tokenizer", list(arguments))
    assert config is not None
    return config


def test_one_question_in_several_spellings(tmp_path: Path) -> None:
    config = parsed("--source-weights", "web/=2.0", "a=b,c=.5")
    assert config.weights == {"web": 2.0, "a=b,c": 0.5}
    assert parsed("--source-weights", "a=b,c=0.50", "web=2").what() == config.what()
    file = tmp_path / "run.yaml"
    file.write_text('source_weights: ["web=2", "a=b,c=5e-1"]')
    assert parsed("--config", str(file)).what() == config.what()
    assert parsed().weights == {}


@pytest.mark.parametrize(
    "item", ["web", "web=", "=2", "web=0", "web=-1", "web=nan", "web=inf", "web=two", "/=1"]
)
def test_what_is_no_weight_is_named(item: str) -> None:
    with pytest.raises(UserError, match=f"{item}: write SOURCE=WEIGHT"):
        parsed("--source-weights", "code=1", item)


def test_a_source_has_one_weight() -> None:
    with pytest.raises(UserError, match="names 'web' twice"):
        parsed("--source-weights", "web=1", "web/=2")
