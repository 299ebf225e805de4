"""The last words of a run: figures, verdict, and where everything lies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from data_pipeline.crops import are_whole_pictures
from jobs.cli.config import Config
from taehv.credentials import without_credentials
from taehv.evaluation.artifact_verdict import judge_artifacts
from taehv.evaluation.verdict import Finding, Thresholds, format_verdict, judge
from taehv.interfaces import Row
from taehv.run.run_folder import RunFolder
from taehv.text_table import text_table


def closing_summary(
    config: Config,
    rows: Sequence[Row],
    baselines: Mapping[str, Mapping[str, float]],
    run: RunFolder,
    finished: bool,
    open_hint: str,
    limits: Thresholds,
) -> str:
    """The text that a run ends with.

    rows: all of metrics.jsonl. baselines: scores of `mean_colour`, `down_and_up` and, where it
    could be fitted, `linear` on the native validation clips. finished: the run made all its steps.
    open_hint: how to look at the tracker.
    """
    # Rows of an older version are of other clips.
    validations = [row for row in rows if "val/detail" in row]
    parts: list[str] = []
    if validations:
        first, last = validations[0], validations[-1]
        coefficients = config.model.architecture.latent_channels
        parts.append(_table(first, last, baselines, f"linear, {coefficients} coefficients"))
        parts += [*_remarks(config, last, limits), ""]
        if finished:
            parts += [format_verdict(judge_run(rows, baselines, limits)), ""]
    parts.append(f"run folder   {_short(run.address)}")
    if finished:
        parts.append(f"weights      {_short(run.address_of('final_model.safetensors'))} (and .pth)")
        parts.append(f"pictures     {_short(run.address_of('samples'))}")
    if open_hint:
        parts.append(f"MLflow       {open_hint}")
    return "\n".join(parts)


def judge_run(
    rows: Sequence[Row], baselines: Mapping[str, Mapping[str, float]], limits: Thresholds
) -> list[Finding]:
    """The findings on a run's averaged weights; see `closing_summary` for the arguments."""
    last = next(row for row in reversed(rows) if "val_ema/psnr" in row)
    scores = {name: last[f"val_ema/{name}"] for name in ("mse", "psnr", "ssim")}
    floor = {name: values["psnr"] for name, values in baselines.items()}
    return judge(scores, floor, rows, limits)


def _table(first: Row, last: Row, baselines: Mapping[str, Mapping[str, float]], linear: str) -> str:
    """The native clips; last, the same weights on the pictures that are scaled down."""
    metrics = ("psnr", "psnr_mean", "ssim", "mse", "detail", "sharpness")
    scores: list[tuple[str, Mapping[str, float], str]] = [
        ("mean colour of each frame", baselines["mean_colour"], ""),
        ("8x down and up, bicubic", baselines["down_and_up"], ""),
        (f"network at step {first['step']}", first, "val/"),
        (f"network at step {last['step']}", last, "val/"),
        (f"averaged weights at step {last['step']}", last, "val_ema/"),
        ("  on whole pictures scaled down", last, "val_shrunk/"),
    ]
    if limit := baselines.get("linear"):
        scores.insert(2, (linear, limit, ""))
    rows = [(name, *(f"{row[prefix + m]:.4g}" for m in metrics)) for name, row, prefix in scores]
    if not limit:
        rows.insert(2, (linear, "too few blocks", *[""] * 5))
    return text_table([("held-out clips, native", *metrics), *rows])


def _remarks(config: Config, last: Row, limits: Thresholds) -> list[str]:
    """What the table does not say."""
    remarks = [
        "psnr is of the error pooled over all clips, psnr_mean the mean of the clips' own; "
        f"{last['val/flat_clips']:.0%} of the clips are flat"
    ]
    start = "artifacts/"
    figures = {n.removeprefix(start): value for n, value in last.items() if n.startswith(start)}
    seen = [f for f in judge_artifacts(figures, limits) if f.level != "pass"]
    if seen:
        listed = "; ".join(f"{f.name} {f.figure:.2g}, {f.threshold} wanted" for f in seen)
        remarks.append(f"artifacts: {listed} (docs/evaluation.md)")
    if are_whole_pictures(config.data.crops):
        gap = last["val_ema/psnr"] - last["val_shrunk/psnr"]
        remarks.append(
            f"trained on whole pictures scaled down (data.crops {config.data.crops}), scored at "
            f"1:1: {gap:+.1f} dB; --data.crops mixed trains on what is used"
        )
    return remarks


def _short(address: str) -> str:
    """Relative to where the user is, if that is shorter."""
    if "://" in address:
        return without_credentials(address)
    return min(os.path.relpath(address), address, key=len)
