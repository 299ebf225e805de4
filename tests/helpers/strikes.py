"""Kills and refusals of the disk at any one of a process's operations on files.

Python itself tells of its operations (audit events), before each: that is a moment at which a
process can be killed, or the operation refused.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taehv.run.run_folder import RunFolder

EVENTS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir")


class Killed(BaseException):
    """The process is dead: nothing that it would still do to files happens."""


class Strikes:
    """Counts moments, and strikes at some."""

    def __init__(self) -> None:
        self.watch: Callable[[], None] = lambda: None
        """Called at every moment."""
        self._looking = threading.local()
        self.spare()

    def spare(self) -> None:
        """From now on nothing happens."""
        self._count, self._kill_at, self._refused = 0, 0, range(0)
        self.dead = False

    def kill_at(self, moment: int) -> None:
        """The process is dead from that moment on, counted from 1."""
        self.spare()
        self._kill_at = moment

    def refuse(self, moments: range) -> None:
        """The operations of these moments are refused."""
        self.spare()
        self._refused = moments

    @contextmanager
    def looking(self) -> Iterator[None]:
        """What this thread does to files meanwhile is the test's own."""
        self._looking.now = True
        try:
            yield
        finally:
            self._looking.now = False

    def moment(self) -> None:
        """One moment passes."""
        if getattr(self._looking, "now", False):
            return
        if not self.dead:
            with self.looking():
                self.watch()
            self._count += 1
            self.dead = self._count == self._kill_at
        if self.dead:
            raise Killed
        if self._count in self._refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class StruckFolder(RunFolder):
    """A run's folder whose operations are the moments: before each, and after it."""

    def __init__(self, address: str, strikes: Strikes) -> None:
        super().__init__(address)
        self._strikes = strikes

    def publish(self, name: str) -> None:
        self._strikes.moment()
        super().publish(name)
        self._strikes.moment()

    def move(self, name: str, target: str) -> None:
        self._strikes.moment()
        super().move(name, target)
        self._strikes.moment()

    def remove(self, name: str) -> None:
        self._strikes.moment()
        super().remove(name)
        self._strikes.moment()

    def retrieve(self, name: str) -> Path:
        self._strikes.moment()
        return super().retrieve(name)

    def entries(self, name: str) -> list[str]:
        self._strikes.moment()
        return super().entries(name)


_listening: list[tuple[Strikes, str]] = []


@contextmanager
def strikes_below(folder: Path) -> Iterator[Strikes]:
    """Strikes at what this process does to files below `folder`, by their full names, and to those
    that it names from an open folder, as `shutil.rmtree` does."""
    if _listen not in _hooks:
        sys.addaudithook(_listen)
        _hooks.append(_listen)
    strikes = Strikes()
    _listening.append((strikes, str(folder)))
    try:
        yield strikes
    finally:
        _listening.pop()


_hooks: list[Callable[[str, tuple[Any, ...]], None]] = []
"""Those that are there; they stay as long as the process."""


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listening or event not in EVENTS or not isinstance(arguments[0], (str, Path)):
        return
    strikes, folder = _listening[-1]
    path = str(arguments[0])
    if path.startswith(folder) or not Path(path).is_absolute():
        strikes.moment()
