"""The line of progress: how far, how fast, how long still, by the work of this run alone."""

import io

import pytest
from rich.console import Console

from pipelines import progress
from pipelines.progress import stage_progress


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture(params=[False, True], ids=["job log", "terminal"])
def said(request, monkeypatch):
    """All that was printed; a terminal is drawn anew each time."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=request.param, width=200, highlight=False, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    return out


def test_rate_and_time_left_are_shown_everywhere(clock, said):
    with stage_progress("code: read", total=100) as shown:
        shown.update(80)  # by a run before this one
        clock.now += 20
        shown.update(90, MB_per_s=12.34)
    text = said.getvalue()
    assert "MB_per_s 12.3" in text
    assert "about 20 s left" in text, "10 units took 20 s, 10 are left"


@pytest.mark.parametrize(
    ("seconds", "left"), [(10, "about 90 s left"), (60, "about 9 min left"), (3600, "about 9.0 h left")]
)
def test_long_times_are_told_in_larger_units(clock, said, seconds, left):
    with stage_progress("train", total=10, unit="step") as shown:
        shown.update(0)
        clock.now += seconds
        shown.update(1)
    assert left in said.getvalue()


def test_the_time_until_the_first_update_is_not_counted(clock, said):
    with stage_progress("train", total=30, unit="step") as shown:
        clock.now += 500  # workers start
        shown.update(10)
        assert "left" not in said.getvalue()
        clock.now += 10
        shown.update(20)
    assert "about 10 s left" in said.getvalue()
