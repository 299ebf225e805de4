"""What trained recipes are worth: means over videos and seeds, and differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jobs.report.plot import STYLE, legend, line_style, mark_style
from taehv.atomic import replacing
from taehv.evaluation.intervals import t_quantile
from taehv.text_table import text_table

Run = Mapping[str, Any]
"""What is kept of a training: recipe, held_out, seed, rungs, waited, diverged."""

Summary = dict[str, Any]
FEWEST_PAIRS = 3
COLUMNS = {
    "psnr": "pooled PSNR",
    "psnr_mean": "PSNR mean",
    "ssim": "SSIM",
    "detail": "detail",
    "lpips": "LPIPS",
}
"""Those that were measured are shown."""
DIGITS = {"psnr": 2, "psnr_mean": 2, "ssim": 3, "detail": 3, "lpips": 3}


def summarise(
    recipes: Sequence[str], runs: Sequence[Run], baselines: Mapping[str, Mapping[str, Any]]
) -> Summary:
    """All figures. A recipe without a whole run is left out.

    recipes: the first is what the others are compared to.
    baselines: by the held-out video's name, then by the row's label: scores.
    """
    labels = [*next(iter(baselines.values()))] if baselines else []
    rows = {label: _mean([held[label] for held in baselines.values()]) for label in labels}
    return {
        "baselines": rows,
        "recipes": {
            recipe: _summarise_recipe(recipe, recipes[0], runs, rows)
            for recipe in recipes
            if _whole(runs, recipe)
        },
    }


def _summarise_recipe(
    recipe: str, first: str, runs: Sequence[Run], rows: Mapping[str, Any]
) -> Summary:
    own, theirs = _whole(runs, recipe), _whole(runs, first)
    rungs: list[dict[str, Any]] = [
        {
            "seconds": fmean(run["rungs"][k]["seconds"] for run in own.values()),
            "steps": fmean(run["rungs"][k]["steps"] for run in own.values()),
            "scores": _mean([run["rungs"][k]["scores"] for run in own.values()]),
        }
        for k in range(len(next(iter(own.values()))["rungs"]))
    ]
    curve = [(rung["seconds"], rung["scores"]["psnr"]) for rung in rungs]
    pairs = [key for key in own if key in theirs]
    return {
        "runs": len(own),
        "diverged": sum(bool(r["diverged"]) for r in runs if r["recipe"] == recipe),
        "waited": fmean(run["waited"] for run in own.values()),
        "rungs": rungs,
        "passes": {label: seconds_to_pass(curve, row["psnr"]) for label, row in rows.items()},
        "difference": {
            name: paired_difference(
                [
                    own[key]["rungs"][-1]["scores"][name] - theirs[key]["rungs"][-1]["scores"][name]
                    for key in pairs
                ]
            )
            for name in COLUMNS
            if name in rungs[-1]["scores"]
        }
        if recipe != first
        else {},
    }


def seconds_to_pass(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """When a curve of (seconds, score) first reaches a level, by straight lines over the logarithm
    of time; None where it does not. Where it begins above it: the time of its first point."""
    for k, (seconds, score) in enumerate(curve):
        if score >= level:
            if k == 0:
                return seconds
            before, low = curve[k - 1]
            part = (level - low) / (score - low)
            return math.exp(math.log(before) + part * (math.log(seconds) - math.log(before)))
    return None


def paired_difference(differences: Sequence[float]) -> Summary:
    """Mean and, of at least `FEWEST_PAIRS`, the 95 % interval by Student's t over the pairs."""
    count = len(differences)
    if not count:
        return {"pairs": 0, "mean": None, "low": None, "high": None}
    mean = fmean(differences)
    if count < FEWEST_PAIRS:
        return {"pairs": count, "mean": mean, "low": None, "high": None}
    half = t_quantile(count - 1) * stdev(differences) / math.sqrt(count)
    return {"pairs": count, "mean": mean, "low": mean - half, "high": mean + half}


def format_summary(summary: Summary) -> str:
    """Three tables as plain text: scores by time, times of passing, differences."""
    recipes, baselines = summary["recipes"], summary["baselines"]
    shown = [*baselines.values(), *(recipe["rungs"][-1]["scores"] for recipe in recipes.values())]
    columns = [name for name in COLUMNS if any(name in scores for scores in shown)]
    labels = [COLUMNS[name] for name in columns]
    rows = [("", "seconds", "steps", *labels)]
    rows += [(label, "", "", *_cells(row, columns)) for label, row in baselines.items()]
    for name, recipe in recipes.items():
        rows += [
            (
                name,
                f"{rung['seconds']:.1f}",
                f"{rung['steps']:.0f}",
                *_cells(rung["scores"], columns),
            )
            for rung in recipe["rungs"]
        ]
    parts = [text_table(rows)]
    rows = [("seconds until above", *baselines, "waited for clips, s", "runs", "diverged")]
    for name, recipe in recipes.items():
        times = [_passing(recipe, label) for label in baselines]
        counts = (f"{recipe['waited']:.1f}", str(recipe["runs"]), str(recipe["diverged"]))
        rows.append((name, *times, *counts))
    parts.append(text_table(rows))
    compared = {name: recipe for name, recipe in recipes.items() if recipe["difference"]}
    if compared:
        rows = [("at the end, minus the first recipe", "pairs", *labels)]
        for name, recipe in compared.items():
            found = recipe["difference"]
            pairs = str(found["psnr"]["pairs"])
            cells = [_interval(found[name], DIGITS[name]) for name in columns]
            rows.append((name, pairs, *cells))
        note = "95 % intervals by Student's t over the pairs: other seeds of these videos"
        parts.append(f"{text_table(rows)}\n{note}")
    return "\n\n".join(parts)


def write_plot(summary: Summary, file: Path) -> None:
    """Pooled PSNR against training seconds, as SVG, with a line for each baseline."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = STYLE | {"figure.facecolor": "white", "svg.hashsalt": "quality"}
    with rc_context(settings):
        figure = Figure((760 / 72, 400 / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        for series, recipe in enumerate(summary["recipes"].values()):
            seconds = [rung["seconds"] for rung in recipe["rungs"]]
            psnr = [rung["scores"]["psnr"] for rung in recipe["rungs"]]
            axes.plot(seconds, psnr, **line_style(series), **mark_style(series))
        for label, row in summary["baselines"].items():
            axes.axhline(row["psnr"], color="#5c6168", linewidth=0.8)
            # Its x is a part of the axes' width.
            axes.text(0.995, row["psnr"], label, transform=axes.get_yaxis_transform(),
                      ha="right", va="bottom", color="#5c6168")  # fmt: skip
        axes.set(xlabel="seconds of training", ylabel="pooled PSNR, dB", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        if summary["recipes"]:
            legend(axes, [*summary["recipes"]], lines=True)
        with replacing(file) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _whole(runs: Sequence[Run], recipe: str) -> dict[tuple[str, int], Run]:
    """The recipe's runs that did not diverge, by held-out video and seed."""
    return {
        (run["held_out"], run["seed"]): run
        for run in runs
        if run["recipe"] == recipe and not run["diverged"]
    }


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(s[name] for s in scores) for name in scores[0]}


def _cells(scores: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    return [f"{scores[name]:.{DIGITS[name]}f}" for name in columns]


def _passing(recipe: Summary, label: str) -> str:
    seconds = recipe["passes"][label]
    first, last = (recipe["rungs"][k]["seconds"] for k in (0, -1))
    if seconds is None:
        return f"not in {last:.0f}"
    return f"{seconds:.0f}" if seconds > first else f"at most {first:.0f}"


def _interval(found: Summary, digits: int) -> str:
    if found["mean"] is None:
        return "none"
    mean = f"{found['mean']:+.{digits}f}"
    if found["low"] is None:
        return mean
    return f"{mean} ({found['low']:+.{digits}f} to {found['high']:+.{digits}f})"
