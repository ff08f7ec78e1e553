"""The quickstart says so itself when its figures do not show what they should."""

import pytest

from pipelines.quickstart.report import BitsPerByte, Rate, Report
from pipelines.quickstart.verdict import shortcomings


def report(base: float = 1.2, low: float = 0.55, value: float = 0.6, high: float = 0.65) -> Report:
    rate = Rate(value=value, low=low, high=high, n=512)
    return Report(
        heldout_bits_per_byte=BitsPerByte(unigram=3.0, base=base),
        parse_rate=rate,
        parse_rate_finetuned=rate,
        win_rate=rate,
        seconds={},
        peak_memory_bytes=1,
        artifacts=[],
    )


def test_good_figures_need_no_warning() -> None:
    assert shortcomings(report(), "full") == []


@pytest.mark.parametrize(
    "figures, words",
    [
        (report(base=1.36), "45%"),
        (report(low=0.48, value=0.52, high=0.56), "48% to 56%, contains 50 %"),
        (report(low=0.5), "contains 50 %"),
        (report(low=0.3, value=0.4, high=0.45), "worse than the fine-tuned one: it wins 40%"),
    ],
)
def test_a_figure_that_falls_short_is_one_line(figures: Report, words: str) -> None:
    (line,) = shortcomings(figures, "full")
    assert words in line
    assert "\n" not in line


def test_of_the_smoke_scale_it_says_that_the_numbers_mean_nothing() -> None:
    (line,) = shortcomings(report(base=2.9, low=0.2), "smoke")
    assert "mean nothing" in line
