"""Processes of Ray's that do not come to their end.

An actor that others subscribe to may wait for itself for ever as it exits (Ray 2.60 posts to its
event loop while destroying it). The raylet has been told by then that it is gone, so that nobody
looks after it any more.
"""

from __future__ import annotations

from contextlib import suppress

import psutil


def workers() -> list[psutil.Process]:
    """Ray's, of the Ray that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::"):
                found.append(process)
    return found


def end(processes: list[psutil.Process], seconds: float) -> None:
    """Those that have not ended by themselves after `seconds` are killed."""
    _, left = psutil.wait_procs(processes, timeout=seconds)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
