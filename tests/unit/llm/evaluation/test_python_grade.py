"""The simulated reviewer prefers better code, is not taken in by cheap tricks, and survives any text."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.evaluation.python_grade import grade

PROMPT = '''    def read_lines(self, path, limit=10):
        """Return the first lines of a file."""'''
GOOD = """        lines = []
        with open(path) as source:
            for line in source:
                if len(lines) == limit:
                    break
                lines.append(line.rstrip())
        return lines"""


def score(response, finished=True, prompt=PROMPT):
    return grade(prompt, response, finished).score


def test_a_whole_body_is_graded_well():
    result = grade(PROMPT, GOOD, True)
    assert result.parses
    assert result.parsed_fraction == 1.0
    assert result.bound_names == 1.0
    assert result.statements == 7
    assert 0.7 < result.score < 1


def test_more_that_parses_is_better():
    lines = GOOD.split("\n")
    one_line = score("        return open(path).readlines()[:limit]")
    assert 0 < one_line < score(GOOD)
    broken_late = "\n".join([*lines[:6], "        return lines["])
    broken_early = "\n".join(["        lines = [", *lines[1:]])
    assert score(GOOD) > score(broken_late) > score(broken_early)
    assert grade(PROMPT, broken_late, True).parsed_fraction == pytest.approx(6 / 7, abs=1 / 7)


def test_a_cut_response_is_graded_but_worth_less():
    assert 0 < score(GOOD, finished=False) < score(GOOD)
    cut = GOOD[: GOOD.index(".rstrip") + 4]
    assert 0 < score(cut, finished=False) < score(GOOD, finished=False)


def test_unbound_names_and_unused_parameters_cost():
    result = grade(PROMPT, GOOD.replace("limit", "maximum_count"), True)
    assert result.bound_names < 1.0
    assert result.used_parameters == 0.5
    assert result.score < score(GOOD)
    assigned = grade(PROMPT, "        limit = 3\n" + GOOD, True)
    assert assigned.bound_names == assigned.used_parameters == 1.0
    assert score("        return self") < score("        return self", prompt="    def read_lines(self):")


@pytest.mark.parametrize(
    "trick",
    [
        "",
        "        pass",
        "        ...",
        '        """Return the lines, all of them, in order, without their ends."""',
        "        # Opens the file\n        # reads the lines\n        # returns them",
        "        # Opens the file\n        pass",
        "        path\n        limit\n        self",
        "        1\n        2\n        3",
    ],
)
def test_text_that_does_nothing_is_worth_nothing(trick):
    assert score(trick) == 0.0


@pytest.mark.parametrize("line", ["        self.path = path", "        print(path, limit)"])
def test_repetition_is_worth_no_more_than_once(line):
    once = score(line)
    assert score("\n".join([line] * 20)) == once
    assert score("        " + "; ".join([line.strip()] * 20)) == once
    counted = "\n".join(f"        total = {number}" for number in range(20))
    assert score(counted) == score("        total = 0")


def test_a_line_that_breaks_off_counts_at_most_as_one_statement():
    names = [f"name_{number}" for number in range(100)]
    assert score("        " + " + ".join(names) + " )") < 0.05
    assert score("        " + "\n        ".join(names) + "\n        )") < 0.05
    assert score("        print(" + ", ".join(names) + ")") < 0.2
    assert 0 < score("        return path limit") < score("        return path, limit")


def test_prompts_need_not_be_methods_or_even_code():
    body = "    total = a + b\n    return total"
    assert grade('def add(a, b):\n    """Add."""', body, True).bound_names == 1.0
    assert grade("async def add(a, b):", "    return await a(b)", True).parses
    assert grade("@cache\ndef add(\n    a,\n    b,\n):", body, True).parses
    chat = grade("How do I add two numbers?", body, True)
    assert chat.parses
    assert chat.bound_names < 1.0
    assert not grade("How do I add two numbers?", "You take both of them.", True).parses


def test_semantic_errors_are_errors():
    result = grade(PROMPT, "        x = path\n        continue", True)
    assert (result.parses, result.statements) == (False, 1)
    assert 0.5 < result.parsed_fraction < 1


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "        x = 1\0",
        "\ud800",
        "        return " + "(" * 5000,
        "        return " + "-" * 19_000 + "1",
        "        return a" + ".a" * 9000,
        "        return a" + "[a" * 80 + "]" * 80,
        "\n".join(" " * (8 + depth) + "if x:" for depth in range(190)),
        "        return " + "9" * 10_000,
        "        return '\\d' is '\\d'",
        "\r\r\n\f        x = 1",
    ],
)
def test_hostile_texts_get_a_grade(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0.0 <= score(text) <= 1.0
        assert 0.0 <= score(GOOD, prompt=text) <= 1.0


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text(), st.booleans())
def test_never_raises_on_text(prompt, response, finished):
    assert 0.0 <= score(response, finished, prompt) <= 1.0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([*GOOD.split("\n"), "        )", "        else:", '        """']), max_size=12)
)
def test_never_raises_on_shuffled_code(lines):
    result = grade(PROMPT, "\n".join(lines), True)
    assert 0.0 <= result.parsed_fraction <= 1.0
    assert result.parses == (result.parsed_fraction == 1.0)
