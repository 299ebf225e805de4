"""What a test leaves behind: nothing."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

TRACES = ("taehv_*", "rendezvous*", "ray_*")
"""Temporary folders of the program, by name."""


@contextmanager
def own_temp(may_leave_folders: bool = False) -> Iterator[Path]:
    """A folder for the temporary files of what a test starts; its path is short, as the paths of
    Ray's sockets must be. At the end nothing of the program may be in it, nor may any process
    that has it in its environment be alive.

    Args:
        may_leave_folders: something was killed that could not tidy up any more.
    """
    folder = Path(tempfile.mkdtemp(prefix="flt"))
    try:
        yield folder
        left = [path.name for trace in TRACES for path in folder.glob(trace)]
        alive = [str(process) for process in processes_of(folder)]
        assert not alive, f"left running: {alive}"
        assert may_leave_folders or not left, f"left behind: {left}"
    finally:
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def environment_of(folder: Path) -> dict[str, str]:
    """What ties a process, and all that it starts, to the folder."""
    return {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder)}


def processes_of(folder: Path) -> list[psutil.Process]:
    """The processes, but this one, whose environment names the folder for temporary files."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_ours = process.environ().get("TMPDIR") == str(folder)
            if is_ours and process.pid != os.getpid():
                found.append(process)
    return found


def wait_until_gone(folder: Path, seconds: float) -> list[psutil.Process]:
    """The processes of the folder that are still there after so long."""
    end = time.monotonic() + seconds
    while (left := processes_of(folder)) and time.monotonic() < end:
        time.sleep(0.5)
    return left


def end_processes(folder: Path) -> None:
    """Kill, by their ids, the processes of the folder."""
    for process in processes_of(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()
