"""Reviewers that are programs. Wherever their rankings go, the name says that they are simulated.

They stand in for people, so that the whole chain can run and be tested. What a person ranks has the same
form.
"""

import random
from collections.abc import Callable, Sequence

from llm.evaluation.python_grade import grade

RESOLUTION = 0.02
"""Grades closer than about this look the same to a reviewer: they are rounded to it, and equal ones tie."""


def _python(prompt: str, response: str, finished: bool) -> float:
    return grade(prompt, response, finished).score


REVIEWERS: dict[str, Callable[[str, str, bool], float]] = {"simulated-python": _python}
"""By name: (prompt, response, whether it was finished) -> grade between 0 and 1."""


def rank_responses(
    reviewer: str, prompt: str, responses: Sequence[tuple[str, bool]], noise: float, seed: int
) -> list[int]:
    """Rank of each (response, finished), 1 is best; equals share the better rank, as in 1, 2, 2, 4.

    Each grade is off by a normal error of standard deviation `noise`, drawn from `seed`.
    """
    errors = random.Random(seed)
    grades = [
        round((REVIEWERS[reviewer](prompt, text, finished) + errors.gauss(0, noise)) / RESOLUTION)
        for text, finished in responses
    ]
    return [1 + sum(other > own for other in grades) for own in grades]
