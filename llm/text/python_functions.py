"""Question and answer pairs out of Python source: signature and docstring ask, the body answers; or the code
asks, and the docstring answers.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class FunctionPair:
    """A function in two parts, as lines without trailing white space at the end."""

    name: str
    prompt: str
    """Dedented to the left margin."""
    response: str


class UnparsableError(ValueError):
    """This Python cannot parse the source; `line` is where it gave up, if it says so."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def python_functions(source: str) -> Iterator[FunctionPair]:
    """Every function of `source` that has a docstring and a body beyond it, nested ones too, in order.

    The prompt is decorators, signature and docstring; the response the rest of the body, indented as a body
    is. Prompt, newline, response are the function's source but for blank lines.

    Raises:
        UnparsableError: it is not the source code of this version of Python.
    """
    for function in _functions(source):
        yield FunctionPair(function.name, "\n".join(function.head + function.docstring), function.body)


def documented_functions(source: str) -> Iterator[FunctionPair]:
    """The same functions; the prompt is their code without the docstring, the response its first sentence.

    A sentence ends with its mark and white space after it, or with the paragraph. Its lines become one.
    """
    for function in _functions(source):
        paragraph = " ".join(function.text.strip().partition("\n\n")[0].split())
        if paragraph:
            code = "\n".join([*function.head, function.body])
            yield FunctionPair(function.name, code, _SENTENCE_END.split(paragraph, maxsplit=1)[0])


_SENTENCE_END = re.compile(r"(?<=[.!?])\s")


@dataclass(frozen=True)
class _Function:
    """In three parts, dedented: lines of decorators and signature, those of the docstring, and the body."""

    name: str
    head: list[str]
    docstring: list[str]
    body: str
    text: str
    """What the docstring says."""


def _functions(source: str) -> Iterator[_Function]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UnparsableError(str(error), getattr(error, "lineno", None)) from error
    lines = source.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = _split(node, lines)
            if function is not None:
                yield function


def _split(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> _Function | None:
    docstring, *body = node.body
    text = ast.get_docstring(node)
    if text is None or not body:
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    docstring_end = docstring.end_lineno
    assert docstring_end is not None
    if body[0].lineno <= docstring_end or docstring.lineno == node.lineno:
        return None  # a one-line function, or code beside the docstring: no clean cut
    source = _dedent(lines[first - 1 : node.end_lineno], lines[node.lineno - 1])
    begin, cut = docstring.lineno - first, docstring_end - first + 1
    rest = "\n".join(source[cut:]).strip("\n").rstrip()
    return _Function(node.name, source[:begin], source[begin:cut], rest, text)


def _dedent(lines: list[str], definition: str) -> list[str]:
    """Take the definition's own indentation off each line that has it.

    Lines inside strings may lie further left: textwrap.dedent would take off less from all for their sake.
    """
    margin = definition[: len(definition) - len(definition.lstrip())]
    return [line.removeprefix(margin) for line in lines]
