"""Temporary folders that nobody has to clean up after: not even after a process that was killed.

Each is locked by the process that made it, and a lock ends with its process, however that ends. So
who makes a folder first removes those of its kind that nobody holds any more.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

_LOCK = ".in_use"


class ScratchFolder:
    """A new, empty folder at `path`, which goes with this object or with this process.

    Args:
        kind: the beginning of its name, the same for all of its kind.
    """

    def __init__(self, kind: str) -> None:
        _remove_abandoned(kind)
        self.path = Path(tempfile.mkdtemp(prefix=f"{kind}_"))
        unnamed = self.path / f"{_LOCK}.new"
        lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Under its name it is never seen unlocked while its owner lives.
        unnamed.rename(self.path / _LOCK)
        self._remove = weakref.finalize(self, _remove, self.path, lock)

    def remove(self) -> None:
        """Now, rather than when this object goes. Nothing happens the second time."""
        self._remove()


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(kind: str) -> None:
    for lock_file in Path(tempfile.gettempdir()).glob(f"{kind}_*/{_LOCK}"):
        # Gone in the meantime, held, or another user's: none of this process's business.
        with suppress(OSError):
            lock = os.open(lock_file, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
            finally:
                os.close(lock)
