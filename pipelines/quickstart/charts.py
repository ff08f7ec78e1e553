"""Charts as inline SVG: no script, no download, readable in any browser and in print."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 34
_COLOURS = ("var(--first)", "var(--second)", "var(--third)")


@dataclass(frozen=True)
class Series:
    """Points of one line; ``dots`` draws them without the line between."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar, with an interval if it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Lines over a common x axis. The y axis need not begin at zero."""
    series = [each for each in series if len(each.x)]
    if not series:
        return '<p class="quiet">nothing was logged</p>'
    x_axis = _Axis.over([x for each in series for x in each.x], _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis.over([y for each in series for y in each.y], _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(x_axis, y_axis), _titles(x_label, y_label)]
    for index, each in enumerate(series):
        colour = _COLOURS[index % len(_COLOURS)]
        points = [(x_axis.at(x), y_axis.at(y)) for x, y in zip(each.x, each.y, strict=True)]
        if each.dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(_legend(each.label, colour, index))
    return _svg(parts, f"{y_label} over {x_label}")


def bar_chart(bars: Sequence[Bar], y_label: str, reference: float | None = None) -> str:
    """Bars from zero, with intervals, and a dashed line at ``reference``."""
    tops = [bar.high if bar.high is not None else bar.value for bar in bars]
    y_axis = _Axis.over(
        [0.0, *tops, *([reference] if reference is not None else [])], _HEIGHT - _BOTTOM, _TOP
    )
    slot = (_WIDTH - _LEFT - _RIGHT) / len(bars)
    parts = [_grid(None, y_axis), _titles("", y_label)]
    for index, bar in enumerate(bars):
        left, top = _LEFT + slot * (index + 0.2), y_axis.at(bar.value)
        middle, width = left + slot * 0.3, slot * 0.6
        parts += [
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{y_axis.at(0) - top:.1f}" '
            f'fill="{_COLOURS[index % len(_COLOURS)]}"/>',
            f'<text x="{middle:.1f}" y="{_HEIGHT - 14}" class="middle">{escape(bar.label)}</text>',
            f'<text x="{left + 4:.1f}" y="{top + 14:.1f}" class="inside">{bar.value:.3g}</text>',
        ]
        if bar.low is not None and bar.high is not None:
            parts.append(
                f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{y_axis.at(bar.low):.1f}" '
                f'y2="{y_axis.at(bar.high):.1f}" class="interval"/>'
            )
    if reference is not None:
        at = y_axis.at(reference)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="reference"/>'
        )
    return _svg(parts, y_label)


@dataclass(frozen=True)
class _Axis:
    """A linear map from values to pixels, with ticks at round numbers."""

    ticks: tuple[float, ...]
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        low, high = min(values), max(values)
        if low == high:
            low, high = low - 0.5, high + 0.5
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step), math.ceil(high / step)
        return cls(tuple(step * index for index in range(first, last + 1)), start, end)

    def at(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _round_step(step: float) -> float:
    """The nearest of 1, 2, 5 × 10ⁿ that is not smaller."""
    magnitude = 10 ** math.floor(math.log10(step))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= step * 0.999)


def _grid(x_axis: _Axis | None, y_axis: _Axis) -> str:
    parts = []
    for tick in y_axis.ticks:
        at = y_axis.at(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" class="end">{tick:.4g}</text>')
    if x_axis is not None:
        y = _HEIGHT - 18
        parts += [f'<text x="{x_axis.at(x):.1f}" y="{y}" class="middle">{x:g}</text>' for x in x_axis.ticks]
    return "".join(parts)


def _titles(x_label: str, y_label: str) -> str:
    x = (
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 3}" class="middle quiet">{escape(x_label)}</text>'
        if x_label
        else ""
    )
    y = f'<text x="12" y="{_HEIGHT / 2}" class="middle quiet" transform="rotate(-90 12 {_HEIGHT / 2})">'
    return f"{x}{y}{escape(y_label)}</text>"


def _legend(label: str, colour: str, index: int) -> str:
    y = _TOP + 8 + 16 * index
    right = _WIDTH - _RIGHT - 6
    return (
        f'<text x="{right - 14}" y="{y + 4}" class="end">{escape(label)}</text>'
        f'<rect x="{right - 9}" y="{y - 4}" width="9" height="9" fill="{colour}"/>'
    )


def _svg(parts: Sequence[str], title: str) -> str:
    box, label = f"0 0 {_WIDTH} {_HEIGHT}", escape(title)
    return f'<svg viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
