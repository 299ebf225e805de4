"""The way from the training workers, wherever they are, to the driver, and back: stop, please."""

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
