"""The plots of the report, from metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jobs.report.axes import DASHES, LEFT, RIGHT, Axes, Scale, legend, mark, span_of, text

MOST_POINTS = 300
"""Of a line: more than a page can show."""

ROW = 34
"""Height of a method's row in a strip plot."""

Results = Mapping[str, Any]


def clips_of(results: Results) -> list[tuple[str, Mapping[str, Any]]]:
    """Every clip, with its name."""
    whole = results["data"]["mode"] != "clips"
    return [
        (video["video"] if whole else f"{video['video']} from frame {clip['first_frame']}", clip)
        for video in results["videos"]
        for clip in video["clips"]
    ]


def over_time(results: Results, methods: Sequence[str]) -> str:
    """PSNR by the frame's place in its clip, the mean over all clips that are as long. A place at
    which a clip is not a number has no point."""
    clips = [clip for _, clip in clips_of(results)]
    length = max(clip["frames"] for clip in clips)
    block = -(-length // MOST_POINTS)
    lines = []
    for method in methods:
        places = []
        for first in range(0, length, block):
            values = [
                value
                for clip in clips
                for value in clip["per_frame"][method]["psnr"][first : first + block]
            ]
            if None not in values:
                places.append((first + (block - 1) / 2 + 1, sum(values) / len(values)))
        lines.append(places)
    axes = Axes.over(
        [x for line in lines for x, _ in line],
        [y for line in lines for _, y in line],
        "frame of the clip",
        "PSNR, dB",
        width=760,
        height=300,
    )
    drawn = []
    # The network's line lies on top.
    for series, line in reversed([*enumerate(lines)]):
        points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line)
        kind = "line first" if series == 0 else "line"
        dash = DASHES[series % len(DASHES)]
        drawn.append(f'<polyline class="{kind}" stroke-dasharray="{dash}" points="{points}"/>')
        if len(line) <= 40:
            drawn += [mark(axes.x(x), axes.y(y), series, f"{y:.2f} dB") for x, y in line]
    labels = [results["methods"][method]["label"] for method in methods]
    return (
        legend(labels, lines=True)
        + axes.svg("".join(drawn), "PSNR over time")
        + _left_out(results, methods, "psnr")
    )


def scatter(results: Results, methods: Sequence[str], of: str, label: str) -> str:
    """PSNR of every clip against something that the original alone decides."""
    clips = clips_of(results)
    points = [
        (series, clip["original"][of], clip["scores"][method]["psnr"], name)
        for series, method in enumerate(methods)
        for name, clip in clips
        if clip["original"][of] is not None and clip["scores"][method]["psnr"] is not None
    ]
    if not points:
        return "<p>No clip has a value.</p>"
    axes = Axes.over([p[1] for p in points], [p[2] for p in points], label, "PSNR, dB")
    # The first series lies on top.
    drawn = [
        mark(axes.x(x), axes.y(y), series, f"{name}: {y:.2f} dB")
        for series, x, y, name in reversed(points)
    ]
    labels = [results["methods"][method]["label"] for method in methods]
    return (
        legend(labels, lines=False)
        + axes.svg("".join(drawn), f"PSNR against {label}")
        + _left_out(results, methods, "psnr")
    )


def strips(results: Results, methods: Sequence[str], metric: str, label: str) -> str:
    """How a score is spread over the clips: a row a method, a dot a clip, a bar the mean."""
    clips = clips_of(results)
    rows = {
        method: [
            (name, clip["scores"][method][metric])
            for name, clip in clips
            if clip["scores"][method][metric] is not None
        ]
        for method in methods
    }
    values = [value for row in rows.values() for _, value in row]
    width, left, bottom = 760.0, 210.0, 40
    height = len(methods) * ROW + bottom
    x = Scale(*span_of(values), left, width - RIGHT)
    drawn = []
    for tick in x.ticks(6):
        drawn.append(f'<path class="grid" d="M{x(tick):.1f} 4V{height - bottom}"/>')
        drawn.append(text(x(tick), height - bottom + 16, f"{tick:.4g}", "middle"))
    drawn.append(text((left + width - RIGHT) / 2, height - 4, label, "middle", "name"))
    for series, (method, row) in enumerate(rows.items()):
        y = series * ROW + ROW / 2
        drawn.append(text(left - 12, y + 4, results["methods"][method]["label"], "end", "row"))
        for place, (name, value) in enumerate(row):
            # Neighbours in the list stand at different heights, so that equal values both show.
            shift = (place * 0.618 % 1 - 0.5) * ROW * 0.45
            drawn.append(mark(x(value), y + shift, series, f"{name}: {value:.4g}"))
        mean = results["methods"][method]["scores"][metric]["mean"]
        if mean is not None:
            drawn.append(f'<path class="mean" d="M{x(mean):.1f} {y - 13:.1f}v26"/>')
    return (
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)} of every clip">{"".join(drawn)}</svg>'
    ) + _left_out(results, methods, metric)


def _left_out(results: Results, methods: Sequence[str], metric: str) -> str:
    """How many clips a plot cannot show, since their score is not a number."""
    counts = {
        method: sum(clip["scores"][method][metric] is None for _, clip in clips_of(results))
        for method in methods
    }
    told = [
        f"{count} of {escape(results['methods'][method]['label'])}"
        for method, count in counts.items()
        if count
    ]
    return f"<p>Not shown, being not a number: clips, {', '.join(told)}.</p>" if told else ""


def interval(found: Mapping[str, Any], reach: float) -> str:
    """A difference with its interval about zero, `reach` being the plot's half width."""
    x = Scale(-reach, reach, 6, 214)
    low, high = found["low"], found["high"]
    whisker = ""
    if low is not None and high is not None:
        a, b = x(max(low, -reach)), x(min(high, reach))
        whisker = f'<path class="whisker" d="M{a:.1f} 8v8M{b:.1f} 8v8M{a:.1f} 12H{b:.1f}"/>'
    zero = f'<path class="zero" d="M{x(0):.1f} 0V24"/>'
    mean = found["mean"]
    point = "" if mean is None else mark(x(max(-reach, min(reach, mean))), 12, 0)
    return (
        '<svg class="interval" viewBox="0 0 220 24" aria-hidden="true">'
        f"{zero}{whisker}{point}</svg>"
    )


def channels(latents: Mapping[str, Any]) -> str:
    """Range, spread and mean of each latent channel."""
    lows, highs = latents["channel_min"], latents["channel_max"]
    if None in [*lows, *highs, *latents["channel_mean"], *latents["channel_std"]]:
        return "<p>Not all latents are numbers.</p>"
    count = len(lows)
    axes = Axes.over([0, count - 1], [*lows, *highs], "latent channel", "value", width=760)
    step = (axes.width - LEFT - RIGHT) / max(count, 1)
    half = min(9.0, step * 0.35)
    drawn = []
    for k, (low, high, mean, std) in enumerate(
        zip(lows, highs, latents["channel_mean"], latents["channel_std"], strict=True)
    ):
        x, top, bottom = axes.x(k), axes.y(mean + std), axes.y(mean - std)
        drawn.append(f'<path class="whisker" d="M{x:.1f} {axes.y(low):.1f}V{axes.y(high):.1f}"/>')
        drawn.append(
            f'<rect class="box" x="{x - half:.1f}" y="{top:.1f}" width="{2 * half:.1f}" '
            f'height="{max(bottom - top, 1):.1f}"><title>channel {k}: mean {mean:.3g}, '
            f"deviation {std:.3g}, {low:.3g} to {high:.3g}</title></rect>"
        )
        drawn.append(f'<path class="mean" d="M{x - half:.1f} {axes.y(mean):.1f}h{2 * half:.1f}"/>')
    return axes.svg("".join(drawn), "range, spread and mean of each latent channel")


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
