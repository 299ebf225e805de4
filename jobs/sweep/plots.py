"""The plots of a sweep's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jobs.report.axes import DASHES, Axes, Scale, mark, span_of, text

MOST_NAMED = 24
"""Points that are named beside their mark; more would lie over each other."""


@dataclass(frozen=True)
class Curve:
    """A score over the steps of a trial."""

    name: str
    points: tuple[tuple[float, float], ...]
    best: bool
    ended_early: bool


def curves(shown: Sequence[Curve], metric: str) -> str:
    """Validation scores over the steps; the best configuration's on top. A trial that was stopped
    early ends in a cross."""
    drawn = [curve for curve in shown if curve.points]
    if not drawn:
        return "<p>No trial has been validated.</p>"
    axes = Axes.over(
        [x for curve in drawn for x, _ in curve.points],
        [y for curve in drawn for _, y in curve.points if math.isfinite(y)],
        "step",
        metric,
        width=760,
        height=340,
    )
    parts = []
    for curve in sorted(drawn, key=lambda c: c.best):
        points = [(x, y) for x, y in curve.points if math.isfinite(y)]
        line = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
        kind = "line first" if curve.best else "line"
        parts.append(f'<polyline class="{kind}" points="{line}"/>')
        for x, y in points:
            end = (x, y) == points[-1]
            series = 0 if curve.best else 4 if curve.ended_early and end else 1
            if curve.best or end:
                parts.append(mark(axes.x(x), axes.y(y), series, f"{curve.name}: {y:.4g}"))
    return axes.svg("".join(parts), f"{metric} over the steps of every trial")


@dataclass(frozen=True)
class Line:
    """A configuration in parallel coordinates."""

    name: str
    values: Mapping[str, Any]
    score: float
    ended_early: bool


def parallel(
    keys: Sequence[str],
    log_keys: set[str],
    lines: Sequence[Line],
    metric: str,
) -> str:
    """Parallel coordinates: an upright axis for each key and one for the score, a line for each
    configuration; the first is drawn strong and on top, those that were stopped early dashed."""
    width, height, top, bottom = 760.0, 360.0, 34.0, 300.0
    columns = [*keys, metric]
    places = [70 + k * (width - 150) / max(1, len(columns) - 1) for k in range(len(columns))]
    scales = [
        _upright([line.values[key] for line in lines], key in log_keys, top, bottom) for key in keys
    ]
    scales.append(_upright([line.score for line in lines], False, top, bottom))
    parts = []
    for place, column, scale in zip(places, columns, scales, strict=True):
        parts.append(f'<path class="axis" d="M{place:.1f} {top:.0f}V{bottom:.0f}"/>')
        parts.append(text(place, height - 26, column, "middle", "name"))
        for label, y in scale.ticks:
            parts.append(f'<path class="axis" d="M{place:.1f} {y:.1f}h-5"/>')
            parts.append(text(place - 8, y + 4, label, "end"))
    for k in reversed(range(len(lines))):
        line = lines[k]
        ys = [scale(line.values[key]) for key, scale in zip(keys, scales, strict=False)]
        ys.append(scales[-1](line.score))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, ys, strict=True))
        kind = "line first" if k == 0 else "line"
        dash = DASHES[2] if line.ended_early else DASHES[0]
        parts.append(
            f'<polyline class="{kind}" stroke-dasharray="{dash}" points="{path}">'
            f"<title>{escape(line.name)}: {line.score:.4g}</title></polyline>"
        )
    return (
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="settings and {escape(metric)}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class _Upright:
    """An upright axis: of numbers, or of names."""

    places: dict[str, float]
    scale: Scale | None
    log: bool
    ticks: tuple[tuple[str, float], ...]

    def __call__(self, value: Any) -> float:
        if self.scale is None:
            return self.places[str(value)]
        return self.scale(math.log10(value) if self.log else value)


def _upright(values: Sequence[Any], log: bool, top: float, bottom: float) -> _Upright:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if not numbers:
        names = list(dict.fromkeys(str(value) for value in values))
        step = (bottom - top) / (len(names) + 1)
        places = {name: bottom - (k + 1) * step for k, name in enumerate(names)}
        return _Upright(places, None, False, tuple(places.items()))
    log = log and min(values) > 0
    laid = [math.log10(value) if log else float(value) for value in values]
    scale = Scale(*span_of(laid), bottom, top)
    distinct = sorted(set(laid))
    marks = distinct if len(distinct) <= 6 else scale.ticks()
    labels = [(f"{10**v if log else v:.3g}", scale(v)) for v in marks]
    return _Upright({}, scale, log, tuple(labels))


def bars(shares: Mapping[str, float]) -> str:
    """A bar for each key; its length is a share of 1."""
    row, left, width = 30, 230, 760
    parts = []
    for k, (key, share) in enumerate(shares.items()):
        y = 8 + k * row
        length = max(1.0, share * (width - left - 70))
        parts.append(text(left - 10, y + 15, key, "end", "row"))
        parts.append(
            f'<rect class="box" x="{left}" y="{y}" width="{length:.1f}" height="{row - 10}"/>'
        )
        parts.append(text(left + length + 8, y + 15, f"{100 * share:.0f} %"))
    height = 16 + row * len(shares)
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="importance of each key">{"".join(parts)}</svg>'
    )


def pareto(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Those that no other is better than in one respect and no worse in all; more is better."""
    return [
        k
        for k, point in enumerate(points)
        if not any(
            all(a >= b for a, b in zip(other, point, strict=True))
            and any(a > b for a, b in zip(other, point, strict=True))
            for other in points
        )
    ]


def trade_off(
    points: Sequence[tuple[str, float, float]], best_set: Sequence[int], x_label: str, right: float
) -> str:
    """PSNR against another score, of which `right` is the right value; the Pareto set filled, and
    joined by a line.

    points: name, the other score, PSNR.
    """
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    axes = Axes.over([*xs, right], ys, x_label, "PSNR, dB", width=760, height=340)
    parts = [f'<path class="zero" d="M{axes.x(right):.1f} {axes.y.end}V{axes.y.start}"/>']
    chain = sorted((points[k][1], points[k][2]) for k in best_set)
    line = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in chain)
    parts.append(f'<polyline class="line" stroke-dasharray="{DASHES[2]}" points="{line}"/>')
    for k, (name, x, y) in enumerate(points):
        on_front = k in best_set
        tip = f"{name}: {y:.2f} dB, {x:.3g}"
        parts.append(mark(axes.x(x), axes.y(y), 0 if on_front else 1, tip))
        if len(points) <= MOST_NAMED:
            parts.append(text(axes.x(x) + 8, axes.y(y) - 6, name))
    return axes.svg("".join(parts), f"PSNR against {x_label}")
