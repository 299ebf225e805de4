"""The table of a sweep of rows: what each part of the loss brings, beside the reference VAE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from jobs.report.words import number, table
from jobs.sweep.definition import Plan
from jobs.sweep.ledger import Ledger
from jobs.sweep.results import Group, aligned, groups, told_mean

NONE = "–"  # noqa: RUF001

Reference = Mapping[str, float] | None
"""Scores of the reference VAE itself, where it was asked for."""


def ablation_rows(plan: Plan, ledger: Ledger, reference: Reference) -> list[tuple[str, Any]]:
    """The rows of the sweep in their order, and the reference VAE."""
    by_label = {group.label: group for group in groups(plan, ledger)}
    rows: list[tuple[str, Any]] = [
        (label, by_label[label]) for label in plan.rows if label in by_label
    ]
    if reference is not None:
        rows.append(("the reference VAE itself", reference))
    return rows


ABLATION = {
    "mse": "MSE",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "sharpness": "sharpness",
    "encode_seconds": "encode, s a clip",
}


def ablation_table(plan: Plan, ledger: Ledger, reference: Reference) -> str:
    """The same as text."""
    lines = [("", *ABLATION.values())]
    for label, found in ablation_rows(plan, ledger, reference):
        if isinstance(found, Group):
            lines.append((label, *(told_mean(found, f"val_ema/{name}") for name in ABLATION)))
        else:
            lines.append((label, *(f"{found[name]:.4g}" for name in ABLATION)))
    return aligned(lines, left=(0,))


def ablation_section(plan: Plan, ledger: Ledger, reference: Reference) -> str:
    rows = []
    for label, found in ablation_rows(plan, ledger, reference):
        if isinstance(found, Group):
            cells = [mean_cell(found, f"val_ema/{name}", 3) for name in ABLATION]
            cells.append(str(found.seeds))
        else:
            cells = [*(number(found[name], 3) for name in ABLATION), NONE]
        rows.append((escape(label), *cells))
    size = plan.base.data
    clip = f"{size.num_frames}x{size.height}x{size.width}"
    return (
        f"<p>Averaged weights at the end, on the same held-out clips of {clip}.</p>"
        f"{table(('', *ABLATION.values(), 'seeds'), rows)}"
    )


def mean_cell(group: Group, metric: str, digits: int = 4) -> str:
    """A mean over seeds, its interval beneath."""
    mean, half = group.mean(metric), group.half_width(metric)
    if not math.isfinite(mean):
        return NONE
    between = f"<small>±{half:.2g}</small>" if math.isfinite(half) else ""
    return number(mean, digits) + between
