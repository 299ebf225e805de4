"""The machine's cores: giving way to others on them, and what a process has had of them."""

import os
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple


@cache
def give_way() -> None:
    """Let this thread, and the decoder that it starts, run where no other thread wants the core.

    A layer of a network ends with its slowest thread: beside decoding of equal rank a training
    step on the same cores takes three times as long, beside this about as long as alone.
    """
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


class UseOfCores(NamedTuple):
    """What a process of one thread has had of the machine's cores, in seconds."""

    ran: float
    waited: float
    """Ready to run, for a core; the wait that is going on is counted when it ends."""
    ready: bool
    """Whether it is that, or runs, now."""


def use_of_cores(pid: int) -> UseOfCores:
    """By Linux's /proc/PID/schedstat; all 0 where there is none."""
    folder = Path(f"/proc/{pid}")
    try:
        ran, waited, turns = (folder / "schedstat").read_text().split()
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError, IndexError):
        return UseOfCores(0.0, 0.0, False)
    # A kernel that does not count shows zeros.
    return UseOfCores(int(ran) / 1e9, int(waited) / 1e9, state == "R" and turns != "0")


def wait_between(before: UseOfCores, after: UseOfCores, seconds: float) -> float:
    """For how long, at most, a process has waited for a core in the seconds between two looks.

    Of one that is ready now, all the time counts in which it did not run: the wait that is going
    on, which Linux has not counted yet, may be nearly all of it.
    """
    idle = max(0.0, seconds - (after.ran - before.ran))
    return idle if after.ready else min(idle, after.waited - before.waited)
