"""The machine's cores: how many there are for this process, giving way to others on them, and
what a process has had of them."""

import math
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


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int:
    """Cores that this process may keep busy: those of its affinity mask, and no more than the CPU
    quota of its cgroup, which is how a container is given less than its machine has.

    cgroups, proc: where Linux shows both.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(allowed, _quota(cgroups, proc))))


def _quota(cgroups: Path, proc: Path) -> float:
    """Cores by the least CPU quota of this process's cgroup and of those that it lies in."""
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
        # In a container the path may be the host's, of which only the top is there to be seen.
        own = top / path.lstrip("/")
        quotas += [
            _quota_of(folder) for folder in (own, *own.parents) if top in (folder, *folder.parents)
        ]
    return min(quotas)


def _quota_of(cgroup: Path) -> float:
    """Cores by a cgroup's own quota; infinite where it has none."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((cgroup / name).read_text().strip() for name in names)
    except (OSError, ValueError):
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


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
