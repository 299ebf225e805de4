"""The last words of a run: figures, verdict, and where everything lies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from taehv.credentials import without_credentials
from taehv.evaluation.verdict import Finding, Thresholds, format_verdict, judge
from taehv.interfaces import Row
from taehv.run.run_folder import RunFolder
from taehv.text_table import text_table


def closing_summary(
    rows: Sequence[Row],
    baselines: Mapping[str, Mapping[str, float]],
    run: RunFolder,
    finished: bool,
    open_hint: str,
    limits: Thresholds,
) -> str:
    """The text that a run ends with.

    rows: all of metrics.jsonl. baselines: scores of `mean_colour` and `down_and_up` on the
    validation clips. finished: the run made all its steps. open_hint: how to look at the tracker.
    """
    validations = [row for row in rows if "val/psnr" in row]
    parts: list[str] = []
    if validations:
        first, last = validations[0], validations[-1]
        parts += [_table(first, last, baselines), ""]
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


def _table(first: Row, last: Row, baselines: Mapping[str, Mapping[str, float]]) -> str:
    metrics = ("psnr", "ssim", "mse", "sharpness")
    scores: list[tuple[str, Mapping[str, float], str]] = [
        ("mean colour of each frame", baselines["mean_colour"], ""),
        ("8x down and up, bicubic", baselines["down_and_up"], ""),
        (f"network at step {first['step']}", first, "val/"),
        (f"network at step {last['step']}", last, "val/"),
        (f"averaged weights at step {last['step']}", last, "val_ema/"),
    ]
    rows = [(name, *(f"{row[prefix + m]:.4g}" for m in metrics)) for name, row, prefix in scores]
    return text_table([("held-out clips", *metrics), *rows])


def _short(address: str) -> str:
    """Relative to where the user is, if that is shorter."""
    if "://" in address:
        return without_credentials(address)
    return min(os.path.relpath(address), address, key=len)
