"""The way from the trials, wherever they are, to the sweep's driver, and back: stop, please."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


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
