"""The `manta` command lines in a text, and whether the command would take them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml

from cluster.errors import UserError
from pipelines.cli import COMMANDS, config_class
from pipelines.command_line import parse
from pipelines.jobs.submit import split

_SHELL_OPERATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>&1"}


def command_problems(words: list[str]) -> list[str]:
    """One line if `manta` refuses these arguments. Nothing runs."""
    name, *arguments = words or [""]
    if words in (["--help"], ["--version"]):
        return []
    if name not in COMMANDS:
        return [f"manta {name}: no such command"]
    if name == "submit":
        arguments, submitted = split(arguments)
        if problems := command_problems(submitted):
            return problems
    try:
        parse(config_class(COMMANDS[name]), name, _without_missing_config(arguments))
    except UserError as error:
        return [f"manta {shlex.join(words)}: {error}"]
    return []


def commands_in_markdown(text: str) -> Iterator[list[str]]:
    """The command lines in a page's code blocks, without `manta`."""
    for language, block in code_blocks(text):
        yield from _commands_in_yaml(block) if language == "yaml" else commands_in_shell(block)


def _commands_in_yaml(text: str) -> Iterator[list[str]]:
    """A command may be folded over lines, and a value may be YAML itself, as kustomize's patches are."""
    values = [yaml.safe_load(text)]
    while values:
        value = values.pop()
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and value.startswith("manta "):
            yield from commands_in_shell(value)
        elif isinstance(value, str) and "\n" in value:
            values.append(yaml.safe_load(value))


def commands_in_shell(text: str) -> Iterator[list[str]]:
    """The command lines of a script: `manta …` at the start of a line, or after `--` or a quote."""
    for line in text.replace("\\\n", " ").splitlines():
        for match in re.finditer(r"(?:^\s*|--\s+|['\"])manta (?P<rest>.*)", line):
            rest = match["rest"].split("'")[0] if match[0].startswith("'") else match["rest"]
            yield until_operator(shlex.split(rest, comments=True))


def until_operator(words: list[str]) -> list[str]:
    """The words of the first command, where the shell would begin another or turn the output elsewhere."""
    end = next((i for i, word in enumerate(words) if word in _SHELL_OPERATORS), len(words))
    return words[:end]


def code_blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, text) of what is fenced, then of what is indented by four spaces."""
    fenced = re.compile(r"^```(.*?)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    yield from ((match[1], match[2]) for match in fenced.finditer(text))
    for match in re.finditer(r"(?:^(?: {4}.*)?\n)+", fenced.sub("", text), re.MULTILINE):
        yield "", match[0]


def _without_missing_config(arguments: list[str]) -> list[str]:
    """A page may show `--config` with a file that it tells the reader to write."""
    if "--config" in arguments:
        at = arguments.index("--config")
        if not Path(arguments[at + 1]).exists():
            return arguments[:at] + arguments[at + 2 :]
    return arguments
