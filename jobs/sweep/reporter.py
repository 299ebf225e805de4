"""Messages from the trials of a sweep to its driver."""

from __future__ import annotations

import logging
import queue
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import PlacementGroup

from jobs.training.messages import LineLogged, RowLogged, StepDone
from taehv.interfaces import Row


@dataclass(frozen=True)
class TrialBegun:
    run_dir: str


@dataclass(frozen=True)
class TrialEnded:
    summary: Mapping[str, Any] | None
    """See `taehv.training.Summary`; None after an error, or where no worker ever started."""
    error: str
    seconds: float


@dataclass(frozen=True)
class ArtifactWritten:
    path: str
    folder: str


@dataclass(frozen=True)
class TagSet:
    name: str
    value: str


@dataclass(frozen=True)
class WorkersPlaced:
    placement_group: PlacementGroup | None
    """What the training workers of the trial hold, which outlives a trial that is killed."""


TrialEvent = (
    TrialBegun
    | WorkersPlaced
    | StepDone
    | RowLogged
    | LineLogged
    | ArtifactWritten
    | TagSet
    | TrialEnded
)


@dataclass(frozen=True)
class TrialMessage:
    number: int
    """Of the trial."""
    event: TrialEvent


class TrialReporter(logging.Handler):
    """Reports a trial to the sweep's driver. The trial's own driver uses it as its tracker, its
    progress and its log. `validations` takes the rows that have the sweep's metric, each step once,
    for Ray Tune."""

    def __init__(
        self, mailbox: Any, number: int, metric: str, validations: queue.Queue[Row | None]
    ) -> None:
        super().__init__(logging.INFO)
        self.mailbox, self.number = mailbox, number
        self._metric, self._validations = metric, validations
        self._last_step = -1
        # Below a warning, only what a trial waits for is worth a line in a sweep.
        self.addFilter(lambda r: r.levelno >= logging.WARNING or r.name == "jobs.cluster.capacity")

    def send(self, event: TrialEvent) -> Any:
        """Gives a reference that is ready once the message has arrived."""
        return self.mailbox.put.remote(TrialMessage(self.number, event))

    def workers_placed(self, placement_group: PlacementGroup | None) -> None:
        self.send(WorkersPlaced(placement_group))

    def step(self, step: int) -> None:
        self.send(StepDone(step))

    def row(self, row: Row) -> None:
        self.send(RowLogged(dict(row)))
        self.add_validation(row)

    def add_validation(self, row: Row) -> None:
        if self._metric in row and row["step"] > self._last_step:
            self._last_step = row["step"]
            self._validations.put(row)

    def log(self, row: Row, step: int) -> None:
        """Does nothing: the trial's driver calls `row` with the same."""

    def skipped(self, videos: int) -> None:
        """Does nothing: the trial's driver logs every skipped video."""

    def artifact(self, path: Any, folder: str = "") -> None:
        self.send(ArtifactWritten(str(path), folder))

    def tag(self, name: str, value: str) -> None:
        self.send(TagSet(name, value))

    def emit(self, record: logging.LogRecord) -> None:
        self.send(LineLogged(record.levelno, record.getMessage()))
