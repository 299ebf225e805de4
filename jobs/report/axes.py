"""Axes of a plot as SVG: scales, ticks, marks. Nothing here depends on a colour to be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 58, 18, 14, 46
"""Margins, in the plot's own units; a letter is about seven wide."""


@dataclass(frozen=True)
class Scale:
    """A stretch of values laid over a stretch of the picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values, about `count` of them."""
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def span_of(values: Sequence[float]) -> tuple[float, float]:
    """The values' range with some air about it; never empty."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - air, high + air


@dataclass(frozen=True)
class Axes:
    """A plot's frame: scales for both directions, and what they measure."""

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    width: float
    height: float

    @classmethod
    def over(
        cls,
        xs: Sequence[float],
        ys: Sequence[float],
        x_label: str,
        y_label: str,
        width: float = 560,
        height: float = 320,
    ) -> Axes:
        """Axes that hold these values."""
        x = Scale(*span_of(xs), LEFT, width - RIGHT)
        y = Scale(*span_of(ys), height - BOTTOM, TOP)
        return cls(x, y, x_label, y_label, width, height)

    def svg(self, content: str, description: str) -> str:
        """The plot, its contents drawn over grid and labels."""
        return (
            f'<svg class="plot" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'aria-label="{escape(description)}">{self._grid()}{content}</svg>'
        )

    def _grid(self) -> str:
        right, bottom = self.width - RIGHT, self.height - BOTTOM
        parts = []
        for tick in self.y.ticks():
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
            parts.append(text(LEFT - 8, y + 4, f"{tick:.4g}", "end"))
        for tick in self.x.ticks():
            x = self.x(tick)
            parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
            parts.append(text(x, bottom + 19, f"{tick:.4g}", "middle"))
        parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
        parts.append(text((LEFT + right) / 2, self.height - 6, self.x_label, "middle", "name"))
        middle = (TOP + bottom) / 2
        parts.append(
            f'<text class="name" text-anchor="middle" '
            f'transform="translate(13 {middle:.0f}) rotate(-90)">{escape(self.y_label)}</text>'
        )
        return "".join(parts)


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "tick") -> str:
    """A line of text; `anchor` start, middle or end."""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(content)}</text>"
    )


MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M0 -5L5 0L0 5L-5 0z",
    "M-4 -4H4V4H-4z",
    "M0 -5L5 4H-5z",
    "M-4 -4L4 4M4 -4L-4 4",
)
"""Disc, diamond, square, triangle, cross: series are told apart by shape."""

DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 5")
"""And lines by their dashes."""


def mark(x: float, y: float, series: int, title: str = "") -> str:
    """A point of a series; the first is filled. The title shows under a mouse."""
    kind = "mark first" if series == 0 else "mark"
    tip = f"<title>{escape(title)}</title>" if title else ""
    path = MARKS[series % len(MARKS)]
    return f'<path class="{kind}" transform="translate({x:.1f} {y:.1f})" d="{path}">{tip}</path>'


def legend(labels: Sequence[str], lines: bool) -> str:
    """Which series is which."""
    entries = []
    for series, label in enumerate(labels):
        dash = DASHES[series % len(DASHES)]
        kind = "line first" if series == 0 else "line"
        line = f'<path class="{kind}" stroke-dasharray="{dash}" d="M2 8H38"/>' if lines else ""
        sample = f'<svg viewBox="0 0 40 16" class="key">{line}{mark(20, 8, series)}</svg>'
        entries.append(f"<span>{sample}{escape(label)}</span>")
    return f'<div class="legend">{"".join(entries)}</div>'
