"""The way from the training workers, wherever they are, to the driver, and from a sweep's trials
to its driver, and back: stop, please."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from taehv.interfaces import Hooks, RejectedVideo, Row

TELL_SECONDS = 1.0
"""A worker's progress is told, and whether to stop asked, no more often than this."""


@ray.remote(num_cpus=0)
class Mailbox:
    """What the workers say waits here for the driver; it lives as long as somebody holds it."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Any]] = []
        self._stop = False
        self._failed = False

    def clear(self) -> None:
        """As new, for the driver of another run."""
        self._messages, self._stop, self._failed = [], False, False

    def put(self, kind: str, content: Any) -> None:
        self._messages.append((kind, content))
        self._failed |= kind == "failure"

    def take(self) -> list[tuple[str, Any]]:
        """All messages that came since the last call, in their order."""
        messages, self._messages = self._messages, []
        return messages

    def begin_life(self) -> None:
        """New workers are about to start; what the last ones were asked does not hold for them."""
        self._stop = False

    def ask_to_stop(self) -> None:
        self._stop = True

    def stop_wanted(self) -> bool:
        return self._stop

    def has_failed(self) -> bool:
        """Whether a worker has told of something that only the user can mend."""
        return self._failed


def open_mailbox() -> Any:
    """The handle of a new mailbox on the driver's own node, with which it lives and dies."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class MailboxHooks(Hooks):
    """A worker's end: everything is sent without waiting for its arrival.

    Args:
        mailbox: the actor's handle.
        is_main: whether this is the worker that speaks for all.
    """

    def __init__(self, mailbox: Any, is_main: bool) -> None:
        self.mailbox = mailbox
        self.is_main = is_main
        self._told_at = self._asked_at = 0.0
        self._stop = False
        self._answer: Any = None
        """Of the mailbox, to whether to stop; None where it has not been asked again."""

    def on_step(self, step: int, samples: Sequence[int]) -> None:
        if self.is_main and time.monotonic() - self._told_at > TELL_SECONDS:
            self._told_at = time.monotonic()
            self.mailbox.put.remote("step", step)

    def on_row(self, row: Row) -> None:
        self.mailbox.put.remote("row", row)

    def on_samples(self, step: int, original: np.ndarray, reconstructed: np.ndarray) -> None:
        self.mailbox.put.remote("samples", (step, original, reconstructed))

    def on_finding(self, name: str, message: str) -> None:
        self.mailbox.put.remote("finding", (name, message))

    def on_quarantined(self, rejected: Sequence[RejectedVideo], total: int) -> None:
        self.mailbox.put.remote("quarantined", (list(rejected), total))

    def should_stop(self) -> bool:
        """By the last answer that has arrived; asking never holds up a step."""
        if not self.is_main or self._stop:
            return self._stop
        if self._answer is None:
            if time.monotonic() - self._asked_at >= TELL_SECONDS:
                self._asked_at = time.monotonic()
                self._answer = self.mailbox.stop_wanted.remote()
        elif ray.wait([self._answer], timeout=0)[0]:
            self._stop, self._answer = bool(ray.get(self._answer)), None
        return self._stop


class MailboxLog(logging.Handler):
    """Sends a worker's log lines to the driver."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(logging.INFO)
        self.mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        self.mailbox.put.remote("log", (record.levelno, record.getMessage()))


@ray.remote(num_cpus=0)
class Desk:
    """What the trials say waits here for the driver of the sweep; it lives as long as that."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, int, Any]] = []
        self._all_stop = False
        self._stop: set[int] = set()

    def put(self, kind: str, number: int, content: Any) -> None:
        """Something that trial `number` has to say."""
        self._messages.append((kind, number, content))

    def take(self) -> list[tuple[str, int, Any]]:
        """All that came since the last call, in its order."""
        messages, self._messages = self._messages, []
        return messages

    def begin(self, number: int) -> bool:
        """Whether a trial may begin."""
        self._stop.discard(number)
        return not self._all_stop

    def stop(self, number: int | None) -> None:
        """Ask one trial, or all for good, to save a checkpoint and end."""
        if number is None:
            self._all_stop = True
        else:
            self._stop.add(number)

    def stop_wanted(self, number: int) -> bool:
        return self._all_stop or number in self._stop


def open_desk() -> Any:
    """The handle of a new desk on the driver's own node, with which it lives and dies."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Desk.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class Voice(logging.Handler):
    """A trial's end of the desk. To its run's driver it is tracker, progress and log in one."""

    def __init__(self, desk: Any, number: int) -> None:
        super().__init__(logging.INFO)
        self.desk, self.number = desk, number
        # Of what is no warning, only what is being waited for is worth a line in a sweep.
        self.addFilter(lambda r: r.levelno >= logging.WARNING or r.name == "jobs.cluster.pool")

    def say(self, kind: str, content: Any) -> None:
        self.desk.put.remote(kind, self.number, content)

    def step(self, step: int) -> None:
        self.say("step", step)

    def row(self, row: Any) -> None:
        self.say("row", dict(row))

    def log(self, row: Any, step: int) -> None:
        """The driver tells `row` of the same."""

    def skipped(self, videos: int) -> None:
        """The driver's log says so."""

    def artifact(self, path: Any, folder: str = "") -> None:
        self.say("artifact", (str(path), folder))

    def tag(self, name: str, value: str) -> None:
        self.say("tag", (name, value))

    def emit(self, record: logging.LogRecord) -> None:
        self.say("log", (record.levelno, record.getMessage()))
