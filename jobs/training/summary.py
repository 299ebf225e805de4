"""The last words of a run: figures, verdict, and where everything lies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from taehv.credentials import without_credentials
from taehv.evaluation.verdict import Thresholds, format_verdict, judge
from taehv.interfaces import Row
from taehv.run.run_folder import RunFolder


def closing_summary(
    rows: Sequence[Row],
    baselines: Mapping[str, Mapping[str, float]],
    run: RunFolder,
    finished: bool,
    open_hint: str,
    limits: Thresholds,
) -> str:
    """The text that a run ends with.

    Args:
        rows: all of metrics.jsonl.
        baselines: scores of `mean_colour` and `down_and_up` on the validation clips.
        run: the run's folder.
        finished: whether the run made all its steps.
        open_hint: how to look at the tracker.
        limits: what the figures are held against.
    """
    validations = [row for row in rows if "val/psnr" in row]
    parts: list[str] = []
    if validations:
        first, last = validations[0], validations[-1]
        parts += [_table(first, last, baselines), ""]
        scores = {name: last[f"val_ema/{name}"] for name in ("mse", "psnr", "ssim")}
        floor = {name: values["psnr"] for name, values in baselines.items()}
        if finished:
            parts += [format_verdict(judge(scores, floor, rows, limits)), ""]
    parts.append(f"run folder   {_short(run.address)}")
    if finished:
        parts.append(f"weights      {_short(run.address_of('final_model.safetensors'))} (and .pth)")
        parts.append(f"pictures     {_short(run.address_of('samples'))}")
    if open_hint:
        parts.append(f"MLflow       {open_hint}")
    return "\n".join(parts)


def _table(first: Row, last: Row, baselines: Mapping[str, Mapping[str, float]]) -> str:
    metrics = ("psnr", "ssim", "mse", "sharpness")
    lines: list[tuple[str, ...]] = [("held-out clips", *metrics)]

    def add(name: str, row: Mapping[str, float], prefix: str = "") -> None:
        lines.append((name, *(f"{row[prefix + metric]:.4g}" for metric in metrics)))

    add("mean colour of each frame", baselines["mean_colour"])
    add("8x down and up, bicubic", baselines["down_and_up"])
    add(f"network at step {first['step']}", first, "val/")
    add(f"network at step {last['step']}", last, "val/")
    add(f"averaged weights at step {last['step']}", last, "val_ema/")
    width = max(len(line[0]) for line in lines)
    return "\n".join(
        f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in cells) for name, *cells in lines
    )


def _short(address: str) -> str:
    """Relative to where the user is, if that is shorter."""
    if "://" in address:
        return without_credentials(address)
    return min(os.path.relpath(address), address, key=len)
