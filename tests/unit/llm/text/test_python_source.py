"""Functions taken apart and put together again; the standard library as a corpus."""

import ast
import textwrap
from pathlib import Path

import pytest

from llm.text.python_functions import UnparsableError, documented_functions, python_functions
from llm.text.python_stdlib import stdlib_files

SOURCE = '''\
class Box:
    @property
    def size(self):
        """How much
        fits."""

        # Counted once.
        text = """
left
"""
        return len(text)

    def empty(self):
        """Only a docstring."""

    def bare(self):
        return 1

async def outer(x: int = 1,
                *rest):
    'Outer.'
    def inner():
        "Inner."
        return x
    return inner

def oneline(): "Doc."; return 2
'''


def test_functions_keep_their_layout():
    pairs = {pair.name: pair for pair in python_functions(SOURCE)}
    assert sorted(pairs) == ["inner", "outer", "size"]
    assert pairs["size"].prompt == '@property\ndef size(self):\n    """How much\n    fits."""'
    assert pairs["size"].response == ('    # Counted once.\n    text = """\nleft\n"""\n    return len(text)')
    assert pairs["inner"].prompt == 'def inner():\n    "Inner."'
    assert pairs["outer"].prompt.startswith("async def outer(x: int = 1,\n                *rest):\n")


def test_every_pair_of_a_real_module_parses_to_the_same_function():
    source = Path(textwrap.__file__).read_text() + Path(ast.__file__).read_text()
    top_level = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    expected = [ast.dump(node) for node in top_level if ast.get_docstring(node) and len(node.body) > 1]
    pairs = python_functions(source)
    rebuilt = [ast.dump(ast.parse(f"{pair.prompt}\n{pair.response}").body[0]) for pair in pairs]
    assert len(rebuilt) > 30
    assert set(expected) <= set(rebuilt)


def test_unparsable_source_has_no_functions():
    with pytest.raises(UnparsableError) as raised:
        list(python_functions("x = 1\nprint 'Python 2'"))
    assert raised.value.line == 2
    with pytest.raises(UnparsableError):
        list(python_functions("\0"))


def test_stdlib_is_sorted_source_without_tests():
    root, files = stdlib_files()
    names = [str(path.relative_to(root)) for path in files]
    assert names == sorted(names)
    assert "inspect.py" in names
    assert len(names) > 400
    outside = ("test/", "site-packages/", "pydoc_data/")
    assert not [n for n in names if n.startswith(outside) or "/tests/" in n or "/idle_test/" in n]
    largest = max(path.stat().st_size for path in files)
    assert largest < 0.03 * sum(path.stat().st_size for path in files), "no file decides what a split is like"


def test_code_without_its_docstring_asks_for_the_first_sentence():
    pairs = {pair.name: pair for pair in documented_functions(SOURCE)}
    assert sorted(pairs) == ["inner", "outer", "size"]
    whole = {pair.name: pair for pair in python_functions(SOURCE)}
    assert pairs["size"].prompt == f"@property\ndef size(self):\n{whole['size'].response}"
    assert {name: pair.response for name, pair in pairs.items()} == {
        "size": "How much fits.",
        "outer": "Outer.",
        "inner": "Inner.",
    }
    long = 'def f():\n    """\n    Look (e.g. here). Or\n    there.\n\n    More.\n    """\n    return 1\n'
    assert [pair.response for pair in documented_functions(long)] == ["Look (e.g."]
