"""What a simulated reviewer thinks of a Python function body: a grade in [0, 1] from its syntax alone.

The prompt is a function's signature and docstring, the response its body. Nothing is run. The grade asks five
things, and each closes a way to please without being good:

    grade = substance · parsed · names · use · finish

    substance = u² / (u² + 16),  u = S + I/4    S distinct statements, I distinct identifiers, where it parses
    parsed    = 1 if all of it is Python, else ½ · the share of lines before the first syntax error
    names     = ½ + ½ · the share of names read that are bound: parameters, assignments, builtins, modules
    use       = ½ + ½ · the share of the function's own parameters that are read (1 if it has none but self)
    finish    = 1, or ½ if the response was cut off by the token limit

Comments, docstrings, `pass` and `...` are no substance, a repeated statement counts once, and so do
statements that differ in their constants only. An empty body gets 0, and one line, however right, never much.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
import textwrap
import warnings
from dataclasses import dataclass
from typing import NamedTuple

LONGEST = 20_000
"""Characters of a response that are read: a bound on the work for any text."""
ATTEMPTS = 16
"""Cuts tried to find a prefix that parses."""

# Deep nesting ends in RecursionError or MemoryError, null bytes and lone surrogates in ValueError.
UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)
NESTED_STATEMENTS = {"body", "orelse", "finalbody", "handlers", "cases"}
KNOWN_NAMES = frozenset(dir(builtins)) | sys.stdlib_module_names | {"__name__", "__file__", "__class__"}


@dataclass(frozen=True)
class Grade:
    """`score` in [0, 1] and what it was made of."""

    score: float
    parses: bool
    """All of the response is Python, as the body of the prompt's function."""
    parsed_fraction: float
    """Share of the response's lines before the first syntax error."""
    statements: int
    """Distinct statements that do something, in the part that parses."""
    bound_names: float
    """Share of the names read that are parameters, assigned, builtins or modules."""
    used_parameters: float
    """Share of the function's parameters, `self` and `cls` left out, that are read."""
    finished: bool


def grade(prompt: str, response: str, finished: bool) -> Grade:
    """The grade of `response` as the body of the function that `prompt` begins; never raises, whatever the
    text.

    `finished` says that the model ended the response itself. A prompt that is no function header (ordinary
    text) is taken for a function without parameters.
    """
    response = response[:LONGEST].rstrip()
    header, body = _fit(prompt, response)
    lines = body.split("\n") if body.strip() else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes and comparisons with `is`
        good_lines = _lines_before_error(header, lines)
        function = _longest_function(header, lines[:good_lines])
    parses = good_lines == len(lines)
    parsed_fraction = good_lines / len(lines) if lines else 1.0
    try:
        content = _content(function)
    except RecursionError:
        content = Content(0, 0, 0.0, 0.0)
    units = content.statements + content.identifiers / 4 if content.statements else 0.0
    score = (
        units**2
        / (units**2 + 16)
        * (1.0 if parses else 0.5 * parsed_fraction)
        * (0.5 + 0.5 * content.bound_names)
        * (0.5 + 0.5 * content.used_parameters)
        * (1.0 if finished else 0.5)
    )
    return Grade(
        score,
        parses,
        parsed_fraction,
        content.statements,
        content.bound_names,
        content.used_parameters,
        finished,
    )


def _fit(prompt: str, response: str) -> tuple[str, str]:
    """(header, body) that together are a module, if the response is Python."""
    indented = re.match(r"[ \t]", prompt.lstrip("\n")) is not None
    header = ("class _:\n" if indented else "") + prompt.strip("\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if _parse(header + "\n" + _indent_of_body(prompt) + "pass") is not None:
            return header, response
    return "def _():", textwrap.indent(textwrap.dedent(response), "    ")


def _indent_of_body(prompt: str) -> str:
    """The prompt's last line is its docstring's, as deep as the body; after a bare header, one level more."""
    last = prompt.rstrip().rsplit("\n", 1)[-1]
    indent = last[: len(last) - len(last.lstrip())]
    return indent + "    " if last.endswith(":") and "def " in last else indent


def _parse(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except UNPARSABLE:
        return None


def _lines_before_error(header: str, lines: list[str]) -> int:
    """How many of the body's lines come before the first error of the whole compiler, all if there is
    none.
    """
    try:
        # An empty body is allowed: it is not good Python, but neither is it a syntax error of the response.
        compile("\n".join([header, *lines]) if lines else "", "<response>", "exec", dont_inherit=True)
        return len(lines)
    except SyntaxError as error:
        first = header.count("\n") + 2
        return min(max((error.lineno or 0) - first, 0), max(len(lines) - 1, 0))
    except UNPARSABLE:
        return 0


def _longest_function(header: str, lines: list[str]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The function made of the header and as many of `lines` as parse."""
    for _ in range(ATTEMPTS):
        if not lines:
            return None
        tree = _parse("\n".join([header, *lines]))
        if tree is not None:
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            return next((node for node in ast.walk(tree) if isinstance(node, functions)), None)
        lines = lines[:-1]
    return None


class Content(NamedTuple):
    """What is in a function's body."""

    statements: int
    identifiers: int
    bound_names: float
    used_parameters: float


def _content(function: ast.FunctionDef | ast.AsyncFunctionDef | None) -> Content:
    """Distinct statements and identifiers; shares of read names that are bound, of parameters that are
    read.
    """
    if function is None:
        return Content(0, 0, 0.0, 0.0)
    bound = set(KNOWN_NAMES) | {function.name}
    read: set[str] = set()
    identifiers: set[str] = set()
    shapes: set[str] = set()
    for node in (node for statement in function.body for node in ast.walk(statement)):
        if isinstance(node, ast.Constant):
            node.value = type(node.value).__name__
        elif isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
            identifiers.add(node.id)
        elif isinstance(node, ast.Attribute):
            identifiers.add(node.attr)
    for node in ast.walk(function):
        bound |= _names_bound_by(node)
    for node in (node for statement in function.body for node in ast.walk(statement)):
        if isinstance(node, ast.stmt) and not _does_nothing(node):
            shapes.add(_shape(node))
    parameters = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)} - {"self", "cls"}
    return Content(
        len(shapes),
        len(identifiers),
        len(read & bound) / len(read) if read else 1.0,
        len(read & parameters) / len(parameters) if parameters else 1.0,
    )


def _names_bound_by(node: ast.AST) -> set[str]:
    """Names that `node` binds by other means than an assignment."""
    if isinstance(node, ast.arg):
        return {node.arg}
    if isinstance(node, ast.alias):
        return {(node.asname or node.name).split(".")[0]}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        return {node.name}
    return set()


def _does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant | ast.Name)
    )


def _shape(statement: ast.stmt) -> str:
    """The statement without the statements inside it, as text that is equal for equal ones."""
    own = [
        ast.dump(part)
        for name, value in ast.iter_fields(statement)
        if name not in NESTED_STATEMENTS
        for part in (value if isinstance(value, list) else [value])
        if isinstance(part, ast.AST)
    ]
    return " ".join([type(statement).__name__, *own])
