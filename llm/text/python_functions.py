"""Question and answer pairs out of Python source: signature and docstring ask, the body answers."""

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class FunctionPair:
    """A function in two parts, as lines: prompt, newline, response are its source but for blank lines."""

    name: str
    prompt: str
    """Decorators, signature and docstring, dedented to the left margin."""
    response: str
    """The rest of the body, indented as a body is, without trailing white space."""


class UnparsableError(ValueError):
    """This Python cannot parse the source; `line` is where it gave up, if it says so."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def python_functions(source: str) -> Iterator[FunctionPair]:
    """Every function of `source` that has a docstring and a body beyond it, nested ones too, in order.

    Raises:
        UnparsableError: it is not the source code of this version of Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UnparsableError(str(error), getattr(error, "lineno", None)) from error
    lines = source.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pair = _split(node, lines)
            if pair is not None:
                yield pair


def _split(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> FunctionPair | None:
    docstring, *body = node.body
    if ast.get_docstring(node, clean=False) is None or not body:
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    docstring_end = docstring.end_lineno
    assert docstring_end is not None
    if body[0].lineno <= docstring_end or docstring.lineno == node.lineno:
        return None  # a one-line function, or code beside the docstring: no clean cut
    source = _dedent(lines[first - 1 : node.end_lineno], lines[node.lineno - 1])
    cut = docstring_end - first + 1
    response = "\n".join(source[cut:]).strip("\n").rstrip()
    return FunctionPair(node.name, "\n".join(source[:cut]), response)


def _dedent(lines: list[str], definition: str) -> list[str]:
    """Take the definition's own indentation off each line that has it.

    Lines inside strings may lie further left: textwrap.dedent would take off less from all for their sake.
    """
    margin = definition[: len(definition) - len(definition.lstrip())]
    return [line.removeprefix(margin) for line in lines]
