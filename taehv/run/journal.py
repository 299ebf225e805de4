"""`metrics.jsonl`: one JSON object per logged step, from which every tracker gets its metrics."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from taehv.atomic import write_atomically
from taehv.interfaces import Row
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)

NAME = "metrics.jsonl"
PARTS = "metrics_parts"
"""On a store that cannot append, rows are written as parts, which the end of the run merges."""


def read(path: Path) -> list[Row]:
    """All rows before the first invalid line, such as a last line that a crash cut short."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows


def read_run(run: RunFolder) -> list[Row]:
    """All rows of a run, wherever its folder is, in the order of their steps."""
    rows = read(run.retrieve(NAME)) if not run.is_remote or run.exists(NAME) else []
    if run.is_remote:
        # Parts that have not been removed may have been merged already.
        merged = set(map(json.dumps, rows))
        for name in run.entries(PARTS):
            part = read(run.retrieve(f"{PARTS}/{name}"))
            rows += [row for row in part if json.dumps(row) not in merged]
    return sorted(rows, key=lambda row: int(row["step"]))


def copy(run: RunFolder, folder: str) -> None:
    """Copy all rows of a run into `folder`, which lies in the run's folder."""
    target = run.local / folder / NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, _lines(read_run(run)))
    run.publish(f"{folder}/{NAME}")


class Journal:
    """Appends rows. A row that cannot be written is kept, and written with the next row.

    Existing rows of steps after `keep_up_to` are dropped: the run writes them again.
    """

    def __init__(self, run: RunFolder, keep_up_to: int) -> None:
        self._run = run
        self._path = run.local / NAME
        self._unwritten: list[Row] = []
        self._unpublished: list[Row] = []
        rows = [row for row in read_run(run) if row["step"] <= keep_up_to]
        run.local.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, _lines(rows))
        self._size = self._path.stat().st_size
        if run.is_remote:
            run.publish(NAME)
            run.remove(PARTS)

    def append(self, row: Row) -> None:
        self._unwritten.append(row)
        self._unpublished.append(row)
        lines = _lines(self._unwritten).encode()
        try:
            with self._path.open("r+b") as file:
                # A write to a full disk may have left half a line, which is overwritten.
                file.seek(self._size)
                file.write(lines)
                file.truncate()
        except OSError as error:
            log.warning("%s cannot be written: %s; the next row tries again", self._path, error)
            return
        self._size += len(lines)
        self._unwritten.clear()

    def publish(self) -> None:
        """Send the rows since the last call to the store, if there is one."""
        if not self._run.is_remote or not self._unpublished:
            return
        name = f"{PARTS}/{self._unpublished[-1]['step']:08d}.jsonl"
        part = self._run.local / name
        try:
            part.parent.mkdir(exist_ok=True)
            part.write_text(_lines(self._unpublished))
            self._run.publish(name)
        except OSError as error:
            address = self._run.address_of(name)
            log.warning("%s cannot be written: %s; the next save tries again", address, error)
            return
        self._unpublished.clear()

    def close(self) -> None:
        """Merge the parts."""
        if not self._run.is_remote:
            return
        try:
            self._run.publish(NAME)
            self._run.remove(PARTS)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._run.address_of(NAME), error)


def _lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
