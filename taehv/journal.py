"""`metrics.jsonl`: one JSON object per logged step, the record that every tracker is fed from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taehv.checkpoint import write_atomically

Row = dict[str, Any]
"""`step` and the metrics of that step by their names (`train/loss`, `val/psnr`, ...)."""


def read(path: Path) -> list[Row]:
    """All whole rows; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_up_to(path: Path, step: int) -> None:
    """Drop the rows later than `step`: a run that goes on from there will write them again."""
    rows = [row for row in read(path) if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def append(path: Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
