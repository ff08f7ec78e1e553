"""Which steps stand out, against numpy, and that a resumed run knows it too."""

import json

import numpy as np
import pytest

from llm.training.outliers import Outliers


@pytest.fixture
def series():
    generator = np.random.default_rng(0)
    losses, norms = (
        5 - np.arange(400) / 200 + generator.normal(0, 0.05, 400),
        generator.lognormal(0, 0.2, 400),
    )
    losses[[30, 150, 300]] += 3  # the first comes before enough is known
    norms[[151, 250]] += 9
    return losses.tolist(), norms.tolist()


def seen_by(outliers, losses, norms):
    return [outliers.is_outlier(*pair) for pair in zip(losses, norms, strict=True)]


def test_against_the_window_written_out(series):
    def stands_out(values, step):
        before = np.array(values[max(0, step - 128) : step])
        return len(before) >= 64 and values[step] > before.mean() + 4 * before.std(ddof=1)

    outliers = Outliers(4.0)
    actual = seen_by(outliers, *series)
    assert actual == [any(stands_out(values, step) for values in series) for step in range(400)]
    assert {150, 151, 250, 300} <= set(np.flatnonzero(actual).tolist())
    assert not actual[30]
    assert outliers.skipped == sum(actual)


def test_what_was_written_down_goes_on_alike(series):
    losses, norms = series
    whole, first, second = Outliers(4.0), Outliers(4.0), Outliers(4.0)
    expected = seen_by(whole, losses, norms)
    begun = seen_by(first, losses[:170], norms[:170])
    second.load(json.loads(json.dumps(first.state())))
    assert begun + seen_by(second, losses[170:], norms[170:]) == expected
    assert second.state() == whole.state()
