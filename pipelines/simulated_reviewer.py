"""Reviewers that are programs. Wherever their judgements go, the name says that they are simulated.

They stand in for people, so that the whole chain can run and be tested. What a person ranks has the same
form.
"""

import random
from collections.abc import Sequence

from llm.evaluation.python_grade import Grade, grade

NAME = "simulated-python"
"""The only one so far: it reads the syntax of Python function bodies."""

RESOLUTION = 0.01
"""Grades closer than about this look the same to a reviewer: they are rounded to it, and equal ones tie."""


def grade_response(prompt: str, response: str, finished: bool) -> Grade:
    """What the reviewer thinks of one response by itself."""
    return grade(prompt, response, finished)


def rank_responses(prompt: str, responses: Sequence[tuple[str, bool]], noise: float, seed: int) -> list[int]:
    """Rank of each (response, finished), 1 is best; equals share the better rank, as in 1, 2, 2, 4.

    Each grade is off by a normal error of standard deviation `noise`, drawn from `seed`.
    """
    errors = random.Random(seed)
    grades = [
        seen(grade_response(prompt, text, finished).score + errors.gauss(0, noise))
        for text, finished in responses
    ]
    return [1 + sum(other > own for other in grades) for own in grades]


def seen(score: float) -> int:
    """The score as finely as a reviewer sees it, for comparisons."""
    return round(score / RESOLUTION)
