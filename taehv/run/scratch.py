"""Temporary folders that are removed even if their process was killed.

Each folder is locked by its process, and the lock ends with the process. Whoever creates a folder
first removes those of the same kind that are no longer locked.
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
    """A new, empty folder at `path`, removed with this object or at the end of this process. Its
    name begins with `kind`."""

    def __init__(self, kind: str) -> None:
        _remove_abandoned(kind)
        self.path = Path(tempfile.mkdtemp(prefix=f"{kind}_"))
        unnamed = self.path / f"{_LOCK}.new"
        lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Locked before it gets its name, so that no process finds it unlocked.
        unnamed.rename(self.path / _LOCK)
        self._remove = weakref.finalize(self, _remove, self.path, lock)

    def remove(self) -> None:
        """Remove the folder now; a second call does nothing."""
        self._remove()


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(kind: str) -> None:
    for lock_file in Path(tempfile.gettempdir()).glob(f"{kind}_*/{_LOCK}"):
        # The folder may be gone by now, be locked, or be another user's.
        with suppress(OSError):
            lock = os.open(lock_file, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
            finally:
                os.close(lock)
