"""What the quickstart's two headline figures leave to be desired, said plainly."""

from pipelines.quickstart.report import Report

_WORST_RATIO = 0.45
"""Of the base model's bits per byte to a token unigram's; the full scale stays well below it."""


def ratio(report: Report) -> float:
    """The base model's bits per byte of held-out text as a share of a token unigram's."""
    return report.heldout_bits_per_byte.base / report.heldout_bits_per_byte.unigram


def shortcomings(report: Report, scale: str) -> list[str]:
    """Lines that warn of figures which do not show what the quickstart is to show; none if they do."""
    if scale != "full":
        return [f"these numbers mean nothing: the scale is `{scale}`, which only shows that all stages run"]
    lines = []
    if ratio(report) > _WORST_RATIO:
        lines.append(
            f"the base model needs {ratio(report):.0%} of the unigram's bits per byte; "
            f"{_WORST_RATIO:.0%} or less was to be expected"
        )
    win = report.win_rate
    if win.low <= 0.5 <= win.high:
        lines.append(
            f"the win rate's interval, {win.low:.0%} to {win.high:.0%}, contains 50 %: "
            "it is not shown that alignment changed anything"
        )
    elif win.high < 0.5:
        lines.append(f"the aligned model is worse than the fine-tuned one: it wins {win.value:.0%}")
    return lines
