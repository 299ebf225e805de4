"""The plots of the report, from metrics.json."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from jobs.report.plot import ACCENT, INK, TINT, legend, line_style, marks, plot, show_tips

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 300
"""Of a line: more than a page can show."""

Results = Mapping[str, Any]


def clips_of(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """Every clip, with its name."""
    whole = results["data"]["mode"] == "whole frames"
    return [
        (video["video"] if whole else f"{video['video']} from frame {clip['first_frame']}", clip)
        for video in results["videos"]
        for clip in video["clips"]
    ]


def labels_of(results: Results, methods: Sequence[str]) -> list[str]:
    return [results["methods"][method]["label"] for method in methods]


def over_time(results: Results, methods: Sequence[str]) -> Markup:
    """PSNR by the frame's place in its clip, the mean over all clips that are as long. A place at
    which a clip is not a number has no point."""
    from matplotlib.ticker import MaxNLocator

    clips = [clip for _, clip in clips_of(results)]
    length = max(clip["frames"] for clip in clips)
    block = -(-length // MOST_POINTS)

    def draw(axes: Axes) -> None:
        for series, method in enumerate(methods):
            xs, ys = [], []
            for first in range(0, length, block):
                values = [
                    value
                    for clip in clips
                    for value in clip["per_frame"][method]["psnr"][first : first + block]
                ]
                if None not in values:
                    xs.append(first + (block - 1) / 2 + 1)
                    ys.append(sum(values) / len(values))
            axes.plot(xs, ys, **line_style(series))
            if len(xs) <= 40:
                marks(axes, [(x, y, f"{y:.2f} dB") for x, y in zip(xs, ys, strict=True)], series)
        axes.set(xlabel="frame of the clip", ylabel="PSNR, dB")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes, labels_of(results, methods), lines=True)

    return plot(draw, "PSNR over time")


def scatter(results: Results, methods: Sequence[str], of: str, label: str) -> Markup | None:
    """PSNR of every clip against something that the original alone decides; None where no clip has
    both."""
    points = {
        method: [
            (clip["original"][of], psnr, f"{name}: {psnr:.2f} dB")
            for name, clip in clips_of(results)
            if (psnr := clip["scores"][method]["psnr"]) is not None
            and clip["original"][of] is not None
        ]
        for method in methods
    }
    if not any(points.values()):
        return None

    def draw(axes: Axes) -> None:
        for series, found in enumerate(points.values()):
            marks(axes, found, series)
        axes.set(xlabel=label, ylabel="PSNR, dB")
        legend(axes, labels_of(results, methods), lines=False)

    return plot(draw, f"PSNR against {label}", width=560)


def strips(results: Results, methods: Sequence[str], metric: str, label: str) -> Markup:
    """How a score is spread over the clips: a row a method, a dot a clip, a bar the mean."""

    def draw(axes: Axes) -> None:
        for row, method in enumerate(methods):
            # Neighbours in the list stand at different heights, so that equal values both show.
            found = [
                (value, row + (place * 0.618 % 1 - 0.5) * 0.45, f"{name}: {value:.4g}")
                for place, (name, clip) in enumerate(clips_of(results))
                if (value := clip["scores"][method][metric]) is not None
            ]
            marks(axes, found, row)
            pooled = "psnr_mean" if metric == "psnr" else metric
            mean = results["methods"][method]["scores"][pooled]["mean"]
            if mean is not None:
                axes.vlines(mean, row - 0.38, row + 0.38, color=INK, linewidth=2.5, zorder=5)
        axes.set_yticks(range(len(methods)), labels_of(results, methods), color=INK)
        axes.set(xlabel=label, ylim=(len(methods) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")

    return plot(draw, f"{label} of every clip", height=34 * len(methods) + 44)


def left_out(results: Results, methods: Sequence[str], metric: str) -> str:
    """How many clips of which method a plot cannot show, since their score is not a number."""
    counts = {
        label: sum(clip["scores"][method][metric] is None for _, clip in clips_of(results))
        for method, label in zip(methods, labels_of(results, methods), strict=True)
    }
    return ", ".join(f"{count} of {label}" for label, count in counts.items() if count)


def phases(results: Results) -> Markup | None:
    """The gain over 8x down and up by a frame's place within its latent, a line a method; None
    where no clip has two latents."""
    from matplotlib.ticker import MaxNLocator

    drawn = {
        method: gains
        for method, gains in results["artifacts"]["phases"].items()
        if gains and None not in gains
    }
    if not drawn:
        return None

    def draw(axes: Axes) -> None:
        for series, gains in enumerate(drawn.values()):
            axes.plot(range(1, len(gains) + 1), gains, **line_style(series))
            points = [(k + 1, gain, f"{gain:.2f} dB") for k, gain in enumerate(gains)]
            marks(axes, points, series)
        axes.set(xlabel="frame of its latent", ylabel="gain, dB")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes, labels_of(results, [*drawn]), lines=True)

    return plot(draw, "gain over 8x down and up by frame of a latent", height=260)


def channels(latents: Mapping[str, Any]) -> Markup | None:
    """Range, spread and mean of each latent channel; None where not all latents are numbers."""
    from matplotlib.ticker import MaxNLocator

    names = ("channel_min", "channel_max", "channel_mean", "channel_std")
    if None in itertools.chain.from_iterable(latents[name] for name in names):
        return None

    def draw(axes: Axes) -> None:
        columns = zip(*(latents[name] for name in names), strict=True)
        for k, (low, high, mean, std) in enumerate(columns):
            tip = f"channel {k}: mean {mean:.3g}, deviation {std:.3g}, {low:.3g} to {high:.3g}"
            axes.vlines(k, low, high, color=INK, linewidth=1.6)
            (box,) = axes.bar(k, 2 * std, 0.6, mean - std, color=TINT, edgecolor=ACCENT, zorder=3)
            show_tips(box, [tip])
            axes.hlines(mean, k - 0.3, k + 0.3, color=INK, linewidth=2.5, zorder=4)
        axes.set(xlabel="latent channel", ylabel="value")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")

    return plot(draw, "range, spread and mean of each latent channel")


def reach_of(differences: Sequence[Mapping[str, Any]], metric: str) -> float:
    """The half width of a plot that holds all these differences in a score."""
    values = [
        abs(found[end])
        for found in differences
        if found["metric"] == metric
        for end in ("mean", "low", "high")
        if found[end] is not None and math.isfinite(found[end])
    ]
    return 1.15 * max(values, default=1.0) or 1.0
