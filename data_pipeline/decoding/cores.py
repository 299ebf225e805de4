"""CPU cores: how many this process may use, idle priority, and a process's time on them."""

import math
import os
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple


@cache
def use_idle_priority() -> None:
    """Let this thread, and the decoder that it starts, run only while no other thread wants a core.

    A layer of a network takes as long as its slowest thread: next to decoding of equal priority a
    training step on the same cores takes three times as long, next to this about as long as alone.
    """
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int:
    """Cores that this process may keep busy: those of its affinity mask, at most the CPU quota of
    its cgroup, by which containers are limited. `cgroups` and `proc` are Linux's file systems."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(allowed, _quota(cgroups, proc))))


def _quota(cgroups: Path, proc: Path) -> float:
    """The smallest CPU quota, in cores, of this process's cgroup and its parents."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # Version 2 has one hierarchy for all controllers, and names none.
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = cgroups / "cpu" if controllers else cgroups
        # In a container the path may be the host's, of which only the top is visible.
        own = top / path.lstrip("/")
        quotas += [
            _quota_of(folder) for folder in (own, *own.parents) if top in (folder, *folder.parents)
        ]
    return min(quotas)


def _quota_of(cgroup: Path) -> float:
    """A cgroup's own quota in cores; infinite if it has none."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((cgroup / name).read_text().strip() for name in names)
    except (OSError, ValueError):
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


class CoreTimes(NamedTuple):
    """Times of a process with one thread, in seconds."""

    ran: float
    waited: float
    """Waiting for a core, ready to run; a present wait is counted only when it ends."""
    ready: bool
    """Whether it is running or ready to run now."""


def core_times(pid: int) -> CoreTimes:
    """Read from Linux's /proc/PID/schedstat; all 0 if there is none."""
    folder = Path(f"/proc/{pid}")
    try:
        ran, waited, turns = (folder / "schedstat").read_text().split()
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError, IndexError):
        return CoreTimes(0.0, 0.0, False)
    # A kernel without these statistics shows zeros.
    return CoreTimes(int(ran) / 1e9, int(waited) / 1e9, state == "R" and turns != "0")


def time_waiting(before: CoreTimes, after: CoreTimes, seconds: float) -> float:
    """The most that a process has waited for a core in the `seconds` between two readings.

    If it is ready now, all the time in which it did not run counts: the present wait, which Linux
    has not counted yet, may be nearly all of it.
    """
    idle = max(0.0, seconds - (after.ran - before.ran))
    return idle if after.ready else min(idle, after.waited - before.waited)
