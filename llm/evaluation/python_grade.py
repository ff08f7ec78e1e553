"""What a simulated reviewer thinks of a Python function body: a grade in [0, 1] from its syntax alone.

The prompt is a function's signature and docstring, the response its body. Nothing is run. The grade asks five
things, and each closes a way to please without being good:

    grade = substance · parsed · names · use · finish

    substance = u² / (u² + 16),  u = S + min(I, 4·S')/4    S distinct statements, I distinct identifiers, up
    to
                                                           the first syntax error; S' counts its line as one
                                                           more
    parsed    = 1 if all of it is Python, else ½ + ½ · the share of the text before the first syntax error
    names     = ¾ + ¼ · the share of names read that are bound: parameters, assignments, builtins, modules
    use       = ¾ + ¼ · the share of the function's own parameters that are read (1 if it has none but self)
    finish    = 1, or ½ if the response was cut off by the token limit

Comments, docstrings, `pass` and `...` are no substance, a repeated statement counts once, and so do
statements that differ in their constants only. An empty body gets 0, and one line, however right, never much:
else a model is best off saying as little as it can.
"""

from __future__ import annotations

import ast
import builtins
import io
import keyword
import re
import sys
import textwrap
import tokenize
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
    """Share of the response before the first syntax error."""
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
        error = _first_error(header, lines)
        good_lines = lines if error is None else lines[: error.line]
        function = _longest_function(header, good_lines)
    broken_line = "" if error is None else lines[error.line][: error.column]
    parsed_fraction = 1.0 if error is None else error.share_before(lines)
    try:
        content = _content(function, _names_in(broken_line))
    except RecursionError:
        content = NOTHING
    most_names = 4 * (content.statements + (error is not None))
    units = content.statements + min(content.names, most_names) / 4 if content.statements or error else 0.0
    score = (
        units**2
        / (units**2 + 16)
        * (1.0 if error is None else 0.5 + 0.5 * parsed_fraction)
        * (0.75 + 0.25 * content.bound_names)
        * (0.75 + 0.25 * content.used_parameters)
        * (1.0 if finished else 0.5)
    )
    return Grade(
        score=score,
        parses=error is None,
        parsed_fraction=parsed_fraction,
        statements=content.statements,
        bound_names=content.bound_names,
        used_parameters=content.used_parameters,
        finished=finished,
    )


class Error(NamedTuple):
    """Where the first syntax error is, counted from 0 in the body."""

    line: int
    column: int

    def share_before(self, lines: list[str]) -> float:
        """Share of the body before the error, by lines, and in its line by characters; below 1."""
        return (self.line + self.column / (len(lines[self.line]) + 1)) / len(lines)


def _fit(prompt: str, response: str) -> tuple[str, str]:
    """(header, body) that together are a module, if the response is Python."""
    indented = re.match(r"[ \t]", prompt.lstrip("\n")) is not None
    header = ("class _:\n" if indented else "") + prompt.strip("\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if _parse_header(header) is not None:
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


def _first_error(header: str, lines: list[str]) -> Error | None:
    """The first error that the whole compiler finds in the body, None if there is none.

    An empty body is allowed: it is not good Python, but neither is it a syntax error of the response.
    """
    if not lines:
        return None
    try:
        compile("\n".join([header, *lines]), "<response>", "exec", dont_inherit=True)
        return None
    except SyntaxError as error:
        line = min(max((error.lineno or 0) - header.count("\n") - 2, 0), len(lines) - 1)
        return Error(line, min(max((error.offset or 1) - 1, 0), len(lines[line])))
    except UNPARSABLE:
        return Error(0, 0)


def _names_in(line: str) -> frozenset[str]:
    """Identifiers of a piece of a line, which need not parse."""
    names: set[str] = set()
    try:
        for token in tokenize.generate_tokens(io.StringIO(line.strip()).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                names.add(token.string)
    except (tokenize.TokenError, *UNPARSABLE):
        pass  # It ended within a bracket or string: what came before counts.
    return frozenset(names)


def _longest_function(header: str, lines: list[str]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The function made of the header and as many of `lines` as parse; with none, of the header alone."""
    lines = [*lines, ""]
    for _ in range(ATTEMPTS):
        lines = lines[:-1]
        tree = _parse("\n".join([header, *lines])) if lines else _parse_header(header)
        if tree is not None:
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            return next((node for node in ast.walk(tree) if isinstance(node, functions)), None)
    return None


def _parse_header(header: str) -> ast.Module | None:
    return _parse(header + "\n" + _indent_of_body(header) + "pass")


class Content(NamedTuple):
    """Distinct statements and names of a function's body; shares of names read that are bound, of parameters
    read.
    """

    statements: int
    names: int
    bound_names: float
    used_parameters: float


NOTHING = Content(0, 0, 0.0, 0.0)


def _content(function: ast.FunctionDef | ast.AsyncFunctionDef | None, names_after: frozenset[str]) -> Content:
    """What `function` holds; `names_after` are read in the line that does not parse any more."""
    if function is None:
        return NOTHING
    bound = set(KNOWN_NAMES) | {function.name}
    read = set(names_after)
    identifiers = set(names_after)
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
