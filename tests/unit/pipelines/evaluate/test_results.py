"""What an evaluation says of known grades: the win rate is the model's, and each number has its role."""

from llm.evaluation.python_grade import Grade
from pipelines.evaluate.answers import Answer
from pipelines.evaluate.results import summarise


def answer(score: float, finished: bool = True) -> Answer:
    grade = Grade(
        score=score,
        parses=score > 0.5,
        parsed_fraction=1.0,
        statements=round(10 * score),
        bound_names=1.0,
        used_parameters=1.0,
        finished=finished,
    )
    return Answer("", tokens=round(100 * score), grade=grade)


def test_the_win_rate_is_the_models_over_the_baseline():
    """Three wins, a tie below the reviewer's resolution, one loss."""
    model = [answer(0.9), answer(0.8), answer(0.6), answer(0.401), answer(0.2)]
    baseline = [answer(0.3), answer(0.7), answer(0.5, finished=False), answer(0.402), answer(0.45)]
    results = summarise({"model": model, "baseline": baseline})
    rate = results["win_rate"]
    assert (rate["wins"], rate["ties"], rate["losses"], rate["value"]) == (3, 1, 1, 0.7)
    assert (results["parse_rate"]["model"]["value"], results["parse_rate"]["baseline"]["value"]) == (0.6, 0.2)
    assert results["finish_rate"]["model"]["value"] == 1.0
    assert results["finish_rate"]["baseline"]["value"] == 0.8
    for mean in ("mean_grade", "mean_statements", "mean_tokens"):
        assert results[mean]["model"] > results[mean]["baseline"]
    swapped = summarise({"model": baseline, "baseline": model})["win_rate"]
    assert (swapped["wins"], swapped["losses"]) == (1, 3)


def test_a_model_alone_has_no_win_rate():
    assert "win_rate" not in summarise({"model": [answer(0.5)]})
