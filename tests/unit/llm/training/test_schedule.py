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
