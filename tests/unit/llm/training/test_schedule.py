import numpy as np
import pytest

from llm.training.schedule import learning_rate


def test_against_the_closed_form_at_every_step():
    steps, warmup, peak, minimum = 200, 20, 3e-3, 3e-4
    actual = np.array([learning_rate(s, steps, warmup, peak, minimum) for s in range(steps + 1)])
    s = np.arange(steps + 1)
    cosine = minimum + (peak - minimum) * np.cos(np.pi / 2 * (s - warmup) / (steps - warmup)) ** 2
    expected = np.where(s < warmup, peak * (s + 1) / warmup, cosine)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    assert actual.argmax() in (warmup - 1, warmup)
    assert actual[-1] == pytest.approx(minimum)


def test_a_line_from_the_peak_to_the_minimum():
    steps, warmup = 200, 20
    actual = [learning_rate(s, steps, warmup, 3e-3, 3e-4, "linear") for s in range(steps + 1)]
    expected = np.interp(np.arange(steps + 1), [0, warmup - 1, warmup, steps], [3e-3 / 20, 3e-3, 3e-3, 3e-4])
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_no_warmup_and_only_warmup():
    assert learning_rate(0, 10, 0, 1.0, 0.1) == 1.0
    assert learning_rate(9, 10, 10, 1.0, 0.1) == 1.0


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_stable_and_then_down(shape):
    """Hägele et al.'s cooldown: f(n, N, N_decay) · peak, with n from the first step on."""
    steps, warmup, peak, minimum = 200, 20, 3e-3, 3e-4
    actual = [learning_rate(s, steps, warmup, peak, minimum, "wsd", 0.3, shape) for s in range(steps + 1)]
    s = np.arange(steps + 1)
    fallen = (s - 140) / 60
    left = 1 - np.sqrt(np.abs(fallen)) if shape == "1-sqrt" else 1 - fallen
    expected = np.where(s < warmup, peak * (s + 1) / warmup, peak)
    expected = np.where(s > 140, minimum + (peak - minimum) * left, expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_a_longer_run_has_the_same_rate_until_a_shorter_one_falls():
    short, long = (
        [learning_rate(s, steps, 5, 1.0, 0.0, "wsd", 0.25) for s in range(75)] for steps in (100, 400)
    )
    assert short == long
    assert learning_rate(99, 100, 5, 1.0, 0.0, "wsd", 0.0) == 1.0, "without a fall the rate is the peak's"
    assert learning_rate(60, 100, 60, 1.0, 0.0, "wsd", 0.9, "linear") == 1.0, "it falls after the warm-up"
