"""Which processes give way to training, and which do not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.bystanders import let_bystanders_give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has SCHED_IDLE")

SLEEPS = (
    "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    "print(flush=True)"
)
"""Says when all of its threads are there."""

STARTS_ANOTHER = (
    "import subprocess, sys, time; "
    "below = subprocess.Popen([sys.executable, '-c', sys.argv[1], 'ray::' + '_StatsActor'], "
    "stdout=subprocess.PIPE); below.stdout.readline(); "
    "print(below.pid, flush=True); time.sleep(60)"
)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_ray_s_bystanders_give_way_and_nobody_else(
    processes: list[subprocess.Popen[str]],
) -> None:
    """A child that decodes, one that collects statistics, and one of the latter's kind below."""
    python = [sys.executable, "-c"]
    for command in (
        [*python, SLEEPS, "ray::map_batches"],
        [*python, SLEEPS, "ray::_StatsActor"],
        [*python, STARTS_ANOTHER, SLEEPS],
    ):
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    decoder, statistics, parent = processes
    for process in processes:
        assert process.stdout is not None
        told = process.stdout.readline()
    below = int(told)
    try:
        let_bystanders_give_way()
        check(decoder.pid, statistics.pid, parent.pid, below)
    finally:
        os.kill(below, signal.SIGKILL)


def check(decoder: int, statistics: int, parent: int, below: int) -> None:
    assert os.sched_getscheduler(decoder) == os.SCHED_OTHER
    assert os.sched_getscheduler(parent) == os.SCHED_OTHER
    for bystander in (statistics, below):
        threads = [int(task.name) for task in Path(f"/proc/{bystander}/task").iterdir()]
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
