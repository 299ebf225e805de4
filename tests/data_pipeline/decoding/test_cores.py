"""How many cores there are for a process: by its affinity, and by its container's quota."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from data_pipeline.decoding.cores import usable_cores

linux_alone = pytest.mark.skipif(sys.platform != "linux", reason="affinity and cgroups are Linux's")


def machine(folder: Path, files: Mapping[str, str]) -> tuple[Path, Path]:
    """What a kernel would show, in place of /sys/fs/cgroup and /proc."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder / "cgroup", folder / "proc"


@linux_alone
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "200000 100000\n"}, 2),
        # Half of a core is one thread's; so is less.
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "10000 100000\n"}, 1),
        # The group above has less to give.
        (
            {
                "proc/self/cgroup": "0::/pod/main\n",
                "cgroup/pod/main/cpu.max": "800000 100000\n",
                "cgroup/pod/cpu.max": "300000 100000\n",
            },
            3,
        ),
        # The path is the host's, of which a container sees the top alone.
        ({"proc/self/cgroup": "0::/docker/a1\n", "cgroup/cpu.max": "400000 100000\n"}, 4),
        # Version 1, beside other controllers.
        (
            {
                "proc/self/cgroup": "4:memory:/m\n2:cpu,cpuacct:/docker/a1\n0::/\n",
                "cgroup/cpu/docker/a1/cpu.cfs_quota_us": "250000\n",
                "cgroup/cpu/docker/a1/cpu.cfs_period_us": "100000\n",
                "cgroup/memory/m/cpu.max": "100000 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu:/\n",
                "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
)
def test_a_containers_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert usable_cores(*machine(tmp_path, files)) == cores


@linux_alone
def test_a_process_that_is_bound_to_one_core_has_one() -> None:
    program = (
        "import os; from data_pipeline.decoding.cores import usable_cores;"
        "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}); print(usable_cores())"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert told.stdout == "1\n"
