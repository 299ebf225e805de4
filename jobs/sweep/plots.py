"""The plots of a sweep's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from jobs.report.plot import (
    ACCENT,
    DASHES,
    INK,
    PAPER,
    SOFT,
    TINT,
    line_style,
    marks,
    plot,
    show_tips,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 24
"""Points that are named beside their mark; more would lie over each other."""


@dataclass(frozen=True)
class Curve:
    """A score over the steps of a trial."""

    name: str
    points: tuple[tuple[float, float], ...]
    best: bool
    ended_early: bool


def curves(shown: Sequence[Curve], metric: str) -> Markup | None:
    """Validation scores over the steps; the best configuration's on top. A trial that was stopped
    early ends in a cross. None where no trial has been validated."""
    if not any(curve.points for curve in shown):
        return None

    def draw(axes: Axes) -> None:
        for curve in sorted(shown, key=lambda c: c.best):
            points = [(x, y) for x, y in curve.points if math.isfinite(y)]
            style = line_style(0 if curve.best else 1) | {"linestyle": "-"}
            axes.plot([x for x, _ in points], [y for _, y in points], **style)
            marked = points if curve.best else points[-1:]
            series = 0 if curve.best else 4 if curve.ended_early else 1
            marks(axes, [(x, y, f"{curve.name}: {y:.4g}") for x, y in marked], series)
        axes.set(xlabel="step", ylabel=metric)

    return plot(draw, f"{metric} over the steps of every trial", height=340)


@dataclass(frozen=True)
class Line:
    """A configuration in parallel coordinates."""

    name: str
    values: Mapping[str, Any]
    score: float
    ended_early: bool


def parallel(keys: Sequence[str], log_keys: set[str], lines: Sequence[Line], metric: str) -> Markup:
    """Parallel coordinates: an upright axis for each key and one for the score, a line for each
    configuration; the first is drawn strong and on top, those that were stopped early dashed."""
    uprights = [_upright([line.values[key] for line in lines], key in log_keys) for key in keys]
    uprights.append(_upright([line.score for line in lines], False))

    def draw(axes: Axes) -> None:
        for place, (_, ticks) in enumerate(uprights):
            axes.axvline(place, color=SOFT, linewidth=1)
            for label, height in ticks:
                axes.annotate(
                    label,
                    (place, height),
                    (-5, 0),
                    textcoords="offset points",
                    color=SOFT,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
                    horizontalalignment="right",
                    verticalalignment="center_baseline",
                )
        for k, line in enumerate(lines):
            dash = {"linestyle": DASHES[2 if line.ended_early else 0]}
            upright_heights = [heights[k] for heights, _ in uprights]
            (drawn,) = axes.plot(upright_heights, **line_style(min(k, 1)) | dash)
            show_tips(drawn, [f"{line.name}: {line.score:.4g}"])
        axes.set_xticks(range(len(uprights)), [*keys, metric], color=INK)
        axes.set(yticks=[], xlim=(-0.3, len(keys) + 0.1), ylim=(0, 1))
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(visible=False)

    return plot(draw, f"settings and {metric}", height=360)


def _upright(values: Sequence[Any], log: bool) -> tuple[list[float], list[tuple[str, float]]]:
    """Values laid over an upright axis, which runs from 0 to 1: the height of each, and the ticks,
    labels with their heights."""
    from matplotlib.ticker import MaxNLocator

    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        names = list(dict.fromkeys(map(str, values)))
        place = {name: (k + 1) / (len(names) + 1) for k, name in enumerate(names)}
        return [place[str(value)] for value in values], [*place.items()]
    log = log and min(values) > 0
    laid = [math.log10(value) if log else float(value) for value in values]
    low, high = min(laid), max(laid)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - air, high + air
    marked = sorted(set(laid))
    if len(marked) > 6:
        marked = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    ticks = [(f"{10**v if log else v:.3g}", (v - low) / (high - low)) for v in marked]
    return [(v - low) / (high - low) for v in laid], ticks


def bars(shares: Mapping[str, float]) -> Markup:
    """A bar for each key; its length is a share of 1."""

    def draw(axes: Axes) -> None:
        drawn = axes.barh([*shares], [*shares.values()], 0.66, color=TINT, edgecolor=ACCENT)
        axes.bar_label(drawn, [f"{100 * share:.0f} %" for share in shares.values()], padding=8)
        axes.set(xlim=(0, 1.08), xticks=[])
        axes.invert_yaxis()
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(labelcolor=INK)
        axes.grid(visible=False)

    return plot(draw, "importance of each key", height=16 + 30 * len(shares))


def pareto(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Those that no other is better than in one respect and no worse in all; more is better."""
    scores = np.array(points)
    no_worse = np.all(scores >= scores[:, None], axis=2)
    better = np.any(scores > scores[:, None], axis=2)
    beaten = np.any(no_worse & better, axis=1)
    return [k for k in range(len(points)) if not beaten[k]]


def trade_off(
    points: Sequence[tuple[str, float, float]], best_set: Sequence[int], x_label: str, right: float
) -> Markup:
    """PSNR against another score, of which `right` is the right value; the Pareto set filled, and
    joined by a line.

    points: name, the other score, PSNR.
    """

    def draw(axes: Axes) -> None:
        axes.axvline(right, color=SOFT, linewidth=1, linestyle=DASHES[2])
        chain = sorted(points[k][1:] for k in best_set)
        style = line_style(1) | {"linestyle": DASHES[2]}
        axes.plot([x for x, _ in chain], [y for _, y in chain], **style)
        for k, (name, x, y) in enumerate(points):
            tip = f"{name}: {y:.2f} dB, {x:.3g}"
            marks(axes, [(x, y, tip)], 0 if k in best_set else 1)
            if len(points) <= MOST_NAMED:
                axes.annotate(name, (x, y), (8, 6), textcoords="offset points", color=SOFT)
        axes.set(xlabel=x_label, ylabel="PSNR, dB")

    return plot(draw, f"PSNR against {x_label}", height=340)
