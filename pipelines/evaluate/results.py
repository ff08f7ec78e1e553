"""What the answers amount to."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from llm.evaluation.win_rate import proportion, win_rate
from pipelines.evaluate.answers import Answer
from pipelines.prompts import Prompt
from pipelines.simulated_reviewer import NAME, seen


def summarise(answers: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """results.json for `answers` by role ("model", and "baseline" if there is one).

    A share is {value, low, high, n}, with the limits of its 95 % Wilson interval.
    """
    everyone = list(answers.items())
    results: dict[str, Any] = {
        "reviewer": NAME,
        "parse_rate": {role: share(answer.grade.parses for answer in own) for role, own in everyone},
        "finish_rate": {role: share(answer.grade.finished for answer in own) for role, own in everyone},
        "mean_grade": {role: mean(answer.grade.score for answer in own) for role, own in everyone},
        "mean_statements": {role: mean(answer.grade.statements for answer in own) for role, own in everyone},
        "mean_tokens": {role: mean(answer.tokens for answer in own) for role, own in everyone},
    }
    if "baseline" in answers:
        ours, theirs = ([seen(a.grade.score) for a in answers[role]] for role in ("model", "baseline"))
        results["win_rate"] = win_rate(ours, theirs).to_json()
    return results


def share(flags: Any) -> dict[str, float]:
    """How many of `flags` are true."""
    listed = list(flags)
    return proportion(sum(listed), len(listed)).to_json()


def side_by_side(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """One record a prompt with every role's response and grade, for samples.jsonl."""
    return [
        {
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            **{
                role: {
                    "response": own[index].text,
                    "grade": own[index].grade.score,
                    "parses": own[index].grade.parses,
                    "finished": own[index].grade.finished,
                    "statements": own[index].grade.statements,
                }
                for role, own in answers.items()
            },
        }
        for index, prompt in enumerate(prompts)
    ]
