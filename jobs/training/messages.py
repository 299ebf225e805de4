"""Messages from training workers to their driver, wherever they run, and its requests to stop.

A sweep's trials send theirs to the sweep's driver in the same way: see `jobs/sweep/reporter.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from taehv.interfaces import Hooks, RejectedVideo, Row

REPORT_SECONDS = 1.0
"""A worker reports its step, and asks whether to stop, no more often than this."""


@dataclass(frozen=True)
class WorkerStarted:
    node_id: str
    placement_group: PlacementGroup | None = None
    """Ray's reservation for all training workers together."""


@dataclass(frozen=True)
class StepDone:
    step: int


@dataclass(frozen=True)
class RowLogged:
    row: Row


@dataclass(frozen=True)
class LineLogged:
    level: int
    text: str


@dataclass(frozen=True)
class SamplesMade:
    """Validation clips, uint8 [N, T, 3, H, W], and their reconstructions."""

    step: int
    original: np.ndarray
    reconstructed: np.ndarray


@dataclass(frozen=True)
class HealthFinding:
    name: str
    text: str


@dataclass(frozen=True)
class VideosQuarantined:
    rejected: Sequence[RejectedVideo]
    total: int
    """Videos in the quarantine by now."""


@dataclass(frozen=True)
class OutOfMemory:
    """A pass was too large for a GPU."""

    shortage: str
    clips_per_pass: int
    """How many clips a pass may have from now on."""


@dataclass(frozen=True)
class RunFailed:
    """Something failed that only the user can mend."""

    error: str


@dataclass(frozen=True)
class RunEnded:
    summary: Mapping[str, Any]
    """See `taehv.training.Summary`."""


WorkerMessage = (
    WorkerStarted
    | StepDone
    | RowLogged
    | LineLogged
    | SamplesMade
    | HealthFinding
    | VideosQuarantined
    | OutOfMemory
    | RunFailed
    | RunEnded
)


class Mailbox:
    """Keeps messages until their driver takes them, and the driver's requests to stop.

    The workers of a run are one sender; each trial of a sweep is one, by its number.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything, for the driver of another run."""
        self._messages: list[Any] = []
        self._stopped: set[int] = set()
        self._all_stopped = False
        self._failed = False

    def put(self, message: Any) -> None:
        self._messages.append(message)
        self._failed |= isinstance(message, RunFailed)

    def take(self) -> list[Any]:
        """All messages since the last call, in the order of their arrival."""
        messages, self._messages = self._messages, []
        return messages

    def begin(self, sender: int = 0) -> bool:
        """Withdraw what this sender was asked before; gives whether it may begin."""
        self._stopped.discard(sender)
        return not self._all_stopped

    def request_stop(self, sender: int = 0) -> None:
        """Ask a sender to save a checkpoint and end."""
        self._stopped.add(sender)

    def request_stop_of_all(self) -> None:
        """Ask all senders for good, those too that have not begun."""
        self._all_stopped = True

    def stop_requested(self, sender: int = 0) -> bool:
        return self._all_stopped or sender in self._stopped

    def has_failed(self) -> bool:
        """Whether a worker has sent `RunFailed`."""
        return self._failed


def open_mailbox() -> Any:
    """The handle of a new mailbox actor, which lives on the driver's node as long as its handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()


class ReportingHooks(Hooks):
    """Reports a worker's training to the driver, without waiting for a message to arrive.

    is_main: whether this is the worker that reports for all.
    """

    def __init__(self, mailbox: Any, is_main: bool) -> None:
        self.mailbox, self.is_main = mailbox, is_main
        self._reported_at = self._asked_at = 0.0
        self._stop = False
        self._answer: Any = None
        """Reference to the answer whether to stop; None while no question is open."""

    def on_step(self, step: int, samples: Sequence[int]) -> None:
        if self.is_main and time.monotonic() - self._reported_at > REPORT_SECONDS:
            self._reported_at = time.monotonic()
            self.mailbox.put.remote(StepDone(step))

    def on_row(self, row: Row) -> None:
        self.mailbox.put.remote(RowLogged(row))

    def on_samples(self, step: int, original: np.ndarray, reconstructed: np.ndarray) -> None:
        self.mailbox.put.remote(SamplesMade(step, original, reconstructed))

    def on_finding(self, name: str, message: str) -> None:
        self.mailbox.put.remote(HealthFinding(name, message))

    def on_quarantined(self, rejected: Sequence[RejectedVideo], total: int) -> None:
        self.mailbox.put.remote(VideosQuarantined(list(rejected), total))

    def should_stop(self) -> bool:
        """By the last answer that has arrived; asking never holds up a step."""
        if not self.is_main or self._stop:
            return self._stop
        if self._answer is None:
            if time.monotonic() - self._asked_at >= REPORT_SECONDS:
                self._asked_at = time.monotonic()
                self._answer = self.mailbox.stop_requested.remote()
        elif ray.wait([self._answer], timeout=0)[0]:
            self._stop, self._answer = bool(ray.get(self._answer)), None
        return self._stop


class LogForwarder(logging.Handler):
    """Sends a worker's log lines to the driver."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(logging.INFO)
        self.mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        self.mailbox.put.remote(LineLogged(record.levelno, record.getMessage()))
