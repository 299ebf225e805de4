"""The sections of the report; each is a piece of HTML from metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jobs.evaluation import plots
from jobs.evaluation.exhibits import WorstClip
from jobs.report.words import NONE, level, number, outcome, picture, score, table
from taehv.evaluation.compare import FEWEST_VIDEOS
from taehv.evaluation.scores import METRICS

Results = Mapping[str, Any]

DIRECTIONS = {"higher": "more is better", "lower": "less is better", "nearer 1": "1 is right"}


def verdict(results: Results) -> str:
    rows = [
        (
            escape(found["name"]),
            number(found["figure"]),
            escape(found["threshold"]),
            level(found["level"]),
        )
        for found in results["verdict"]["findings"]
    ]
    return table(("check", "figure", "wanted", "verdict"), rows, words=(2, 3))


def figures(results: Results) -> str:
    """Every method in every score."""
    shown = shown_metrics(results)
    header = [
        "method",
        *(
            f"{METRICS[n].label}{', ' + METRICS[n].unit if METRICS[n].unit else ''}"
            f"<small>{DIRECTIONS[METRICS[n].better]}</small>"
            for n in shown
        ),
    ]
    rows = [
        (escape(method["label"]), *(score(n, method["scores"].get(n)) for n in shown))
        for method in results["methods"].values()
    ]
    return (
        "<p>Means over all clips. Beneath each, where the mean over all such videos lies with "
        "95 % confidence: a bootstrap over videos.</p>"
        f'<div class="dense">{table(header, rows, own=0)}</div>'
    )


def against_others(results: Results) -> str:
    """Paired differences, one table a method."""
    parts = [
        "<p>The network minus the other, paired clip by clip; the bar is the 95 % interval of the "
        "mean difference, and the broken line is no difference. The last column is the "
        "network's.</p>"
    ]
    if results["data"]["videos"] < FEWEST_VIDEOS:
        parts.append(
            f"<p>With {results['data']['videos']} videos nothing is called better or worse: "
            f"{FEWEST_VIDEOS} are the fewest that can show it.</p>"
        )
    every = [found for differences in results["differences"].values() for found in differences]
    for key, differences in results["differences"].items():
        rows = [
            (
                METRICS[found["metric"]].label
                + (" (distance from 1)" if METRICS[found["metric"]].better == "nearer 1" else ""),
                number(found["mean"], 3),
                plots.interval(found, plots.reach_of(every, found["metric"])),
                outcome(found),
            )
            for found in differences
        ]
        parts.append(f"<h3>against {escape(results['methods'][key]['label'])}</h3>")
        parts.append(table(("score", "difference", "", "the network is"), rows, words=(3,)))
    return "".join(parts)


def worst(results: Results, clips: Sequence[WorstClip]) -> str:
    """The clips that come back worst, with their pictures."""
    parts = ["<p>By PSNR, the worst first; of each clip its worst frame.</p>"]
    for place, shown in enumerate(clips, start=1):
        video = results["videos"][shown.video]
        clip = video["clips"][shown.clip]
        found = clip["scores"]["network"]
        frame = clip["first_frame"] + shown.frame
        told = [f"{number(found['psnr'])} dB", f"SSIM {number(found['ssim'], 3)}"]
        told += [
            f"{escape(results['methods'][key]['label'])} {number(clip['scores'][key]['psnr'])} dB"
            for key in results["differences"]
        ]
        images = "".join(picture(file, label) for label, file in shown.pictures)
        parts.append(
            f'<section class="clip" data-psnr="{_attribute(found["psnr"])}"><h3>{place}. '
            f"{escape(video['video'])}, frame {frame}</h3>"
            f'<p class="soft">{" · ".join(told)}</p><div class="pictures">{images}</div></section>'
        )
    return "".join(parts)


def _attribute(value: float | None) -> str:
    return "" if value is None else str(value)


def over_time(results: Results) -> str:
    return f'<div class="wide">{plots.over_time(results, drawn_methods(results))}</div>'


def distributions(results: Results) -> str:
    methods = drawn_methods(results)
    parts = ["<p>A mark is a clip, the upright bar the mean.</p>"]
    for metric in ("psnr", "ssim"):
        parts.append(
            f'<div class="wide">{plots.strips(results, methods, metric, METRICS[metric].label)}'
            "</div>"
        )
    return "".join(parts)


def causes(results: Results) -> str:
    """Error against what the original is like."""
    methods = ["network", "down_and_up"]
    motion = plots.scatter(results, methods, "motion", "motion: mean change between frames")
    light = plots.scatter(results, methods, "brightness", "brightness: mean luma")
    return (
        '<div class="plots"><div><h3>motion</h3><div class="wide">'
        f'{motion}</div></div><div><h3>brightness</h3><div class="wide">{light}</div></div></div>'
    )


def rate(results: Results, latents: Path | None) -> str:
    """What the latents cost to keep, and what they are like."""
    found, mine = results["rate"], results["latents"]
    bits = found["bits_per_pixel"]
    cost = found["int8_psnr_cost"]
    costs = NONE
    if cost["mean"] is not None:
        costs = "under 0.001 dB" if cost["mean"] < 0.001 else f"{cost['mean']:.3f} dB"
    rows = [
        ("raw video, 8 bits", number(bits["raw"]), "1", NONE, NONE),
        (
            "latents in fp16",
            number(bits["half"], 3),
            number(found["raw_over_half"], 3),
            number(found["source_over_half"], 3),
            NONE,
        ),
        (
            "latents in int8",
            number(bits["int8"], 3),
            number(found["raw_over_int8"], 3),
            number(found["source_over_int8"], 3),
            costs,
        ),
        (
            "the source files",
            number(bits["source"], 3),
            number(bits["raw"] / bits["source"], 3),
            "1",
            NONE,
        ),
    ]
    header = ("", "bits per pixel", "raw video / this", "source file / this", "PSNR cost")
    parts = [
        table(header, rows),
        "<p>In int8 each channel of each latent is spread over its own range, which is counted. "
        "Latents are not entropy coded here, as the source files are.</p>",
        f"<h3>The latents: mean {number(mine['mean'], 3)}, deviation {number(mine['std'], 3)}</h3>"
        "<p>Of each channel: the line from lowest to highest, the box one deviation about the "
        "mean.</p>",
        f'<div class="wide">{plots.channels(mine)}</div>',
    ]
    if latents is not None:
        caption = "latents of sample 0: a column a channel, a row a moment; grey from low to high"
        parts.append(f'<div class="wide latents">{picture(latents, caption)}</div>')
    return "".join(parts)


def cost(results: Results) -> str:
    """Seconds and memory."""

    def megabytes(value: int | None) -> str:
        return NONE if value is None else f"{value / 2**20:.0f} MB"

    rows = [
        (
            escape(results["methods"][key]["label"]),
            f"{found['encode_seconds']:.3f} s",
            f"{found['decode_seconds']:.3f} s",
            megabytes(found["encode_peak_bytes"]),
            megabytes(found["decode_peak_bytes"]),
        )
        for key, found in results["cost"]["methods"].items()
    ]
    size = "x".join(str(side) for side in results["cost"]["speed_clip"])
    return (
        f"<p>A clip of {size}, warmed up, the median of up to five; memory over what was in use "
        f"before. On {escape(results['environment']['device'])}.</p>"
        + table(("method", "encode", "decode", "memory to encode", "to decode"), rows, own=0)
    )


def every_clip(results: Results) -> str:
    """All clips, the worst first."""
    shown = shown_metrics(results)
    clips = sorted(
        plots.clips_of(results), key=lambda entry: _or_worst(entry[1]["scores"]["network"]["psnr"])
    )
    rows = [
        (escape(name), *(number(clip["scores"]["network"].get(n)) for n in shown))
        for name, clip in clips[:MOST_ROWS]
    ]
    header = ("clip", *(METRICS[n].label for n in shown))
    left = "<p>The rest is in metrics.json.</p>" if len(clips) > MOST_ROWS else ""
    return f"<details><summary>{len(clips)} clips</summary>{table(header, rows)}{left}</details>"


MOST_ROWS = 500


def _or_worst(psnr: float | None) -> float:
    """What is not a number comes before the lowest."""
    return -math.inf if psnr is None else psnr


def shown_metrics(results: Results) -> list[str]:
    """Those that any clip of the network has."""
    scores = results["methods"]["network"]["scores"]
    return [n for n in METRICS if n in scores and scores[n]["clips"]]


def drawn_methods(results: Results) -> list[str]:
    """Those that are drawn: int8 would lie on the network, the mean colour far below."""
    return [key for key in results["methods"] if key not in ("int8", "mean_colour")][:5]
