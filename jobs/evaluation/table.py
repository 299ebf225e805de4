"""What an evaluation prints: a line per sample, and a table that ends with the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.evaluation.measure import VideoResult
from taehv.evaluation.compare import FEWEST_VIDEOS
from taehv.evaluation.scores import METRICS, Scores, pooled_scores, value_of
from taehv.evaluation.verdict import Finding, format_verdict
from taehv.text_table import text_table


def sample_line(number: int, of: int, result: VideoResult, seconds: float) -> str:
    """A video that has been scored."""
    scores = pooled_scores([clip.scores["network"] for clip in result.clips])
    clips = len(result.clips)
    counted = f"{result.clips[0].frames} frames" if clips == 1 else f"{clips} clips"
    return (
        f"[{number:>{len(str(of))}}/{of}] {result.video}  {counted}  {scores['psnr']:.2f} dB  "
        f"SSIM {scores['ssim']:.4f}  {seconds:.1f} s"
    )


def closing_table(results: Mapping[str, Any]) -> str:
    """All methods, what the differences show, the rate, the cost, and the verdict."""
    outcomes = [
        f"against {results['methods'][key]['label']}: "
        f"{_format_differences(differences, results['data']['videos'])}"
        for key, differences in results["differences"].items()
    ]
    findings = [
        Finding(**{**found, "figure": math.nan if found["figure"] is None else found["figure"]})
        for found in results["verdict"]["findings"]
    ]
    rate = results["rate"]
    bits = rate["bits_per_pixel"]
    cost = results["cost"]["methods"]["network"]
    parts = [
        _methods(results),
        "",
        flat_line(results),
        *([scale_line(results)] if results["trained_on"] else []),
        *outcomes,
        f"latents: {bits['half']:.3g} bits per pixel in fp16 (a {rate['raw_over_half']:.0f}th of "
        f"raw video), {bits['int8']:.3g} in int8 (a {rate['raw_over_int8']:.0f}th), which costs "
        f"{_format_mean(rate['int8_psnr_cost']['mean'])} dB",
        f"a clip of {'x'.join(map(str, results['cost']['speed_clip']))}: encode "
        f"{cost['encode_seconds']:.3f} s, decode {cost['decode_seconds']:.3f} s "
        f"({results['environment']['device']})",
        "",
        format_verdict(findings),
    ]
    return "\n".join(parts)


def scores_table(title: str, methods: Mapping[str, Scores]) -> str:
    """A row of scores for each method, by its label."""
    first = next(iter(methods.values()))
    shown = [name for name in METRICS if value_of(first, name) is not None and name in first]
    lines = [(title, *(METRICS[name].label for name in shown))]
    lines += [
        (label, *(_format_mean(value_of(scores, name)) for name in shown))
        for label, scores in methods.items()
    ]
    return text_table(lines)


def flat_line(results: Mapping[str, Any]) -> str:
    """How many clips are flat, and the PSNR of these alone."""
    flat = results["flat"]
    counted = f"flat clips: {flat['clips']} of {results['data']['clips']}"
    if not flat["clips"]:
        return counted
    alone = ", ".join(
        f"{results['methods'][key]['label']} {_format_mean(psnr)}"
        for key, psnr in flat["psnr"].items()
        if key not in ("int8", "mean_colour")
    )
    return f"{counted}; PSNR of these alone, dB: {alone}"


def scale_line(results: Mapping[str, Any]) -> str:
    """Where the scale of what was trained on and of what is scored differ."""
    found = results["trained_on"]
    difference = _format_signed(found["difference"])
    return (
        f"trained on clips at 1/{1 / found['scale']:.2g} of the scale (there "
        f"{_format_mean(found['psnr'])} dB), scored at 1:1: {difference} dB"
    )


def _format_signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.1f}"


def _methods(results: Mapping[str, Any]) -> str:
    network = results["methods"]["network"]["scores"]
    shown = [name for name in METRICS if name in network and network[name]["clips"]]
    data = results["data"]
    kind = "held-out videos" if data["split"] == "validation" else "videos of the whole list"
    title = f"{data['videos']} {kind}, {data['clips']} clips"
    title += f", {len(data['skipped'])} skipped" if data["skipped"] else ""
    lines = [(title, *(METRICS[name].label for name in shown))]
    lines += [
        (method["label"], *(_format_mean(method["scores"][name]["mean"]) for name in shown))
        for method in results["methods"].values()
    ]
    if any(network[name]["low"] is not None for name in shown):
        lines.insert(2, ("  95 % interval", *(_half_width(network[name]) for name in shown)))
    return text_table(lines)


def _half_width(score: Mapping[str, float | None]) -> str:
    """Of the interval; a score that too few videos have, such as flicker, has none."""
    low, high = score["low"], score["high"]
    return "none" if low is None or high is None else f"±{(high - low) / 2:.2g}"


def _format_mean(value: float | None) -> str:
    return "none" if value is None else f"{value:#.4g}"


def _format_differences(differences: Sequence[Mapping[str, Any]], videos: int) -> str:
    alike: dict[tuple[str, str], list[str]] = {}
    figures = [_format_gain(found) for found in differences if found["metric"] == "psnr"]
    for found in differences:
        key = found["outcome"], found["note"]
        alike.setdefault(key, []).append(METRICS[found["metric"]].label)
    parts = [
        f"{outcome} in {', '.join(names)}" + (f" ({note})" if note else "")
        for (outcome, note), names in sorted(alike.items(), key=lambda entry: bool(entry[0][1]))
    ]
    if videos < FEWEST_VIDEOS:
        parts.append(f"{videos} videos; {FEWEST_VIDEOS} are the fewest to show a difference")
    return "; ".join(figures + parts)


def _format_gain(psnr: Mapping[str, Any]) -> str:
    """The difference in PSNR, paired by clip, with its interval over videos."""
    low, high = psnr["low"], psnr["high"]
    between = "" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})"
    mean = psnr["mean"]
    return f"PSNR {'none' if mean is None else f'{mean:+.2f}'} dB{between}"
