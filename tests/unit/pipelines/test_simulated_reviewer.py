"""Rankings by the simulated reviewer: ties, competition ranks, seeded noise."""

from pipelines.simulated_reviewer import rank_responses

PROMPT = 'def area(width, height):\n    """Area of a rectangle."""'
GOOD = "    if width < 0:\n        raise ValueError(width)\n    return width * height"
SHORT = "    return width * height"
BROKEN = "    return width *"


def ranks(*responses, noise=0.0, seed=0):
    return rank_responses(PROMPT, [(text, True) for text in responses], noise, seed)


def test_equals_share_the_better_rank():
    assert ranks(SHORT, GOOD, SHORT, BROKEN) == [2, 1, 2, 4]
    assert ranks(BROKEN, BROKEN) == [1, 1]


def test_a_cut_response_is_ranked_below_a_whole_one():
    assert rank_responses(PROMPT, [(GOOD, False), (GOOD, True)], 0.0, 0) == [2, 1]


def test_noise_is_seeded_and_makes_mistakes():
    answers = [ranks(GOOD, SHORT, noise=0.5, seed=seed) for seed in range(200)]
    assert answers == [ranks(GOOD, SHORT, noise=0.5, seed=seed) for seed in range(200)]
    mistakes = sum(answer == [2, 1] for answer in answers)
    assert 20 < mistakes < 100
