"""Every `manta` and `ray` command line that the guides show is one that exists."""

import re
import shlex
from pathlib import Path

import pytest

from tests.unit.infra.aws_checks import ray_problems
from tests.unit.infra.kubernetes_checks import REPOSITORY
from tests.unit.infra.manta_commands import (
    code_blocks,
    command_problems,
    commands_in_markdown,
    commands_in_shell,
    until_operator,
)

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page: Path):
    text = page.read_text()
    problems = [each for words in commands_in_markdown(text) for each in command_problems(words)]
    for _, block in code_blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            if match := re.match(r"\s*ray (.*)", line):
                problems += ray_problems(until_operator(shlex.split(match[1], comments=True)))
    assert problems == []


def test_the_pages_show_the_commands_that_this_reads():
    count = sum(1 for page in PAGES for _ in commands_in_markdown(page.read_text()))
    assert count > 25
    aws = list(commands_in_markdown((REPOSITORY / "docs/aws.md").read_text()))
    assert [words[0] for words in aws] == ["corpus", "tokenizer", "tokens", "pretrain", "submit"]
    kubernetes = list(commands_in_markdown((REPOSITORY / "docs/kubernetes.md").read_text()))
    assert [words[0] for words in kubernetes] == ["pretrain", "corpus", "tokenizer", "tokens", "chat"]


def test_where_commands_are_found():
    page = """
Text with `manta lies`.

    manta ls --root x   # a comment
    ray exec c.yaml 'manta show models/a --root x' > file

```yaml
entrypoint: >-
  manta tokens --name a
  --root x
```
"""
    assert list(commands_in_markdown(page)) == [
        ["tokens", "--name", "a", "--root", "x"],
        ["ls", "--root", "x"],
        ["show", "models/a", "--root", "x"],
    ]
    assert list(commands_in_shell("ray job submit -- manta ls | less")) == [["ls"]]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("pretrian --root x", "pretrian"),
        ("pretrain --roots x", "--root"),
        ("pretrain --workers many", "many"),
        ("serve --dtype float8", "float8"),
        ("submit pretrain --worker 2", "--worker"),
        ("--hlep", "--hlep"),
    ],
)
def test_commands_that_do_not_exist_are_told_apart(words, named):
    assert any(named in problem for problem in command_problems(words.split()))
