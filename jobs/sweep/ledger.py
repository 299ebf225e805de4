"""What a sweep writes down of its trials: a `trial.json` in each one's folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from jobs.sweep.space import frozen
from taehv.atomic import write_atomically
from taehv.credentials import hide_credentials, in_all_texts
from taehv.errors import TrainingError
from taehv.interfaces import Row
from taehv.run import journal
from taehv.run.run_folder import RunFolder

Status = Literal["running", "finished", "pruned", "failed", "interrupted"]
Stage = Literal["search", "confirm"]

ENDED = ("finished", "pruned", "failed")
"""Trials of these are not run again."""


@dataclass(frozen=True)
class Record:
    """A trial."""

    number: int
    stage: Stage
    drawn: dict[str, Any]
    """Values as they were drawn, by config keys; ratios as ratios."""
    settings: dict[str, Any]
    """Values as the configuration has them."""
    seed: int
    label: str = ""
    """Of a sweep of rows: the row."""
    status: Status = "running"
    step: int = 0
    """Steps that were made."""
    seconds: float = 0.0
    """From its first beginning to its end, without the time between two sessions."""
    attempts: int = 0
    """Times it was begun or gone on with."""
    error: str = ""
    lpips: float | None = None
    """Mean over the held-out clips; lower is better."""
    verdict: str = ""
    """pass, warning or failure, of a trial that is finished."""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.number:03d}"


class Ledger:
    """The records of a sweep's trials, by their number."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.records: dict[int, Record] = {}
        for name in folder.entries("trials"):
            file = f"trials/{name}/trial.json"
            if folder.exists(file):
                record = _read(folder, file)
                self.records[record.number] = record

    def address(self, record: Record) -> str:
        """The trial's run folder."""
        return self.folder.address_of(f"trials/{record.name}")

    def rows(self, record: Record) -> list[Row]:
        """Its metrics."""
        return journal.read_run(RunFolder(self.address(record)))

    def add(
        self,
        stage: Stage,
        drawn: Mapping[str, Any],
        settings: Mapping[str, Any],
        seed: int,
        label: str,
    ) -> Record:
        """A new trial."""
        number = max(self.records, default=0) + 1
        record = Record(number, stage, dict(drawn), dict(settings), seed, label)
        self.records[number] = record
        return record

    def update(self, number: int, **changes: Any) -> Record:
        """Change a record, and write it."""
        # An error may name the address at which it happened.
        changes = in_all_texts(hide_credentials, changes)
        record = dataclasses.replace(self.records[number], **changes)
        self.records[number] = record
        file = f"trials/{record.name}/trial.json"
        path = self.folder.local / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(dataclasses.asdict(record), indent=1) + "\n")
        self.folder.publish(file)
        return record

    def of_stage(self, stage: Stage) -> list[Record]:
        return [self.records[n] for n in sorted(self.records) if self.records[n].stage == stage]


def _read(folder: RunFolder, file: str) -> Record:
    try:
        content = json.loads(folder.retrieve(file).read_text())
        for name in ("drawn", "settings"):
            content[name] = {key: frozen(value) for key, value in content[name].items()}
        return TypeAdapter(Record).validate_python(content)
    except (ValueError, KeyError, AttributeError) as error:
        raise TrainingError(
            f"{folder}/{file} is damaged ({error}): remove that trial's folder, and it is made "
            "again"
        ) from error
