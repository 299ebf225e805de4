"""The table of a sweep of rows: what each part of the loss brings, beside the reference VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.sweep.definition import Plan
from jobs.sweep.ledger import Ledger
from jobs.sweep.results import Group, groups, told_mean
from taehv.text_table import text_table

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
    return text_table(lines)
