"""Sweeps whose trials are made up: what a ledger and the trials' folders would hold."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.sweep.definition import Plan, make_plan, read_sweep
from jobs.sweep.ledger import Ledger, Stage, Status
from taehv.run.run_folder import RunFolder

SCORES = {"mse": 0.01, "psnr": 20.0, "ssim": 0.7, "temporal": 0.1, "sharpness": 0.5}


def made_plan(folder: Path, text: str) -> Plan:
    """A plan from the text of a YAML file."""
    path = folder / "made.yaml"
    path.write_text(text)
    return make_plan(*read_sweep(path))


def add_trial(
    plan: Plan,
    ledger: Ledger,
    drawn: Mapping[str, Any],
    psnr: Sequence[float],
    status: Status = "finished",
    seed: int = 0,
    label: str = "",
    more: Mapping[str, float] | None = None,
    stage: Stage = "search",
) -> int:
    """A trial that was validated every 10 steps, with these values of PSNR, and `more` metrics."""
    settings = plan.resolve(drawn) | {"train.seed": seed}
    record = ledger.add(stage, dict(drawn), settings, seed, label)
    ledger.update(record.number, status=status, step=10 * len(psnr), seconds=1.0)
    rows = []
    for k, value in enumerate(psnr, start=1):
        row: dict[str, Any] = {"step": 10 * k}
        for prefix in ("val", "val_ema"):
            row |= {f"{prefix}/{name}": score for name, score in SCORES.items()}
            row |= {f"{prefix}/encode_seconds": 0.1, f"{prefix}/decode_seconds": 0.2}
            row |= {f"{prefix}/psnr": value}
        rows.append(row | dict(more or {}))
    file = ledger.folder.local / "trials" / record.name / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return record.number


def empty_ledger(folder: Path) -> Ledger:
    folder.mkdir(parents=True, exist_ok=True)
    return Ledger(RunFolder(str(folder)))
