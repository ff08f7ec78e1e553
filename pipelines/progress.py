"""A live line of progress: redrawn on a terminal, printed every few seconds elsewhere (job logs, CI)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

_PLAIN_INTERVAL_SECONDS = 5.0

console = Console(highlight=False, soft_wrap=True)


class StageProgress:
    """How far a stage is, with fields such as ``loss`` or ``tokens_per_s`` beside it, and the time left.

    The time left goes by the pace since the first update: what was done before then says nothing of it.
    """

    def __init__(self, stage: str, total: int, unit: str, live: Progress | None) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self._live = live
        self._task = live.add_task(stage, total=total, fields="") if live else None
        self._last_printed = time.monotonic()
        self._first: tuple[float, int] | None = None

    def update(self, completed: int, **fields: Any) -> None:
        """Show ``completed`` of ``total`` units and the latest values of ``fields``."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, completed
        shown = [f"{name} {_short(value)}" for name, value in fields.items() if value is not None]
        text = "  ".join(shown + self._left(now, completed))
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=completed, fields=text)
            return
        if now - self._last_printed >= _PLAIN_INTERVAL_SECONDS or completed >= self.total > 0:
            self._last_printed = now
            console.print(f"{self.stage}: {completed:,}/{self.total:,} {self.unit}s  {text}".rstrip())

    def say(self, text: str) -> None:
        """Print a line above the progress."""
        console.print(f"{self.stage}: {text}", markup=False)

    def _left(self, now: float, completed: int) -> list[str]:
        assert self._first is not None
        began, completed_before = self._first
        done = completed - completed_before
        if done <= 0 or completed >= self.total:
            return []
        return [f"about {_duration((now - began) / done * (self.total - completed))} left"]


@contextmanager
def stage_progress(stage: str, total: int, unit: str = "unit") -> Iterator[StageProgress]:
    """Progress of one stage for the length of the block; driver side only."""
    if not console.is_terminal:
        yield StageProgress(stage, total, unit, live=None)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[fields]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as live:
        yield StageProgress(stage, total, unit, live)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
