"""A small SVG writer: axes and marks, with classes instead of colours.

`figures.css` gives the classes their colours, for light and for dark. Coordinates are
CSS pixels; every figure scales to the width of its column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import fmean
from typing import Final, Literal

Anchor = Literal["start", "middle", "end"]

WIDTH: Final = 720.0


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixels of a value."""
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(slots=True)
class Drawing:
    """One figure: elements are added in order, `render` makes the `<svg>`.

    Args:
        name: unique in the page; ids derive from it.
        title: what the figure is, for readers who cannot see it.
        description: what it shows, in a sentence or two.
        height: pixels.
    """

    name: str
    title: str
    description: str
    height: float
    width: float = WIDTH
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self.parts.append(
            f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{css}"/>'
        )

    def circle(self, x: float, y: float, radius: float, css: str, tip: str = "") -> None:
        """A dot, with a tooltip."""
        self.parts.append(
            f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" class="{css}">{_tip(tip)}</circle>'
        )

    def rect(
        self, x: float, y: float, *, width: float, height: float, css: str, tip: str = ""
    ) -> None:
        """A bar with slightly rounded corners."""
        self.parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(0.0, width))}" '
            f'height="{_n(max(0.0, height))}" rx="2" class="{css}">{_tip(tip)}</rect>'
        )

    def path(self, points: list[tuple[float, float]], css: str) -> None:
        """A line through points."""
        joined = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self.parts.append(f'<polyline points="{joined}" class="{css}"/>')

    def text(self, x: float, y: float, words: str, css: str, anchor: Anchor = "start") -> None:
        """Words with their baseline at y."""
        self.parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" class="{css}">'
            f"{escape(words)}</text>"
        )

    def x_axis(self, scale: Scale, top: float, bottom: float, label: str, places: int) -> None:
        """Vertical grid lines with numbers beneath, and the axis' name."""
        for value in ticks(scale.low, scale.high):
            x = scale(value)
            self.line(x, top, x, bottom, "grid")
            self.text(x, bottom + 16, f"{value:,.{places}f}", "tick", "middle")
        self.text((scale.start + scale.end) / 2, bottom + 36, label, "axis-name", "middle")

    def y_axis(self, scale: Scale, left: float, right: float, label: str, places: int) -> None:
        """Horizontal grid lines with numbers at the left, and the axis' name on top."""
        for value in ticks(scale.low, scale.high):
            y = scale(value)
            self.line(left, y, right, y, "grid")
            self.text(left - 8, y + 4, f"{value:,.{places}f}", "tick", "end")
        self.text(0, min(scale.start, scale.end) - 14, label, "axis-name")

    def render(self) -> str:
        """The figure as inline SVG, named for assistive technology."""
        ids = f"{self.name}-title {self.name}-desc"
        return (
            f'<svg viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img" '
            f'aria-labelledby="{ids}" class="figure">'
            f'<title id="{self.name}-title">{escape(self.title)}</title>'
            f'<desc id="{self.name}-desc">{escape(self.description)}</desc>'
            f"{''.join(self.parts)}</svg>"
        )


def padded(values: list[float], share: float = 0.08) -> tuple[float, float]:
    """The range of the values with a margin on both sides; never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * share or 1.0
    return low - margin, high + margin


def spread(ends: Sequence[tuple[float, str]], least: float = 15.0) -> list[tuple[float, str]]:
    """Labels at the lines' ends, moved apart where they would overlap, in the same order."""
    placed: list[tuple[float, str]] = []
    for y, row in sorted(ends):
        placed.append((max(y, placed[-1][0] + least) if placed else y, row))
    shift = fmean(y for y, _ in placed) - fmean(y for y, _ in ends)
    return [(y - shift, row) for y, row in placed]


def _n(value: float) -> str:
    """A coordinate with at most two decimals."""
    assert math.isfinite(value)
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _tip(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""
