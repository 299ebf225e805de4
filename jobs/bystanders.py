"""Processes of Ray's that have no part in training, made to give way to it on a machine of its own.

Each of them wakes a hundred times a second, for less than a tenth of a millisecond. That alone is
little, but an operation of PyTorch ends with the slowest of its threads: with 14 such processes
beside it, a training step on two cores takes a fifth longer. Of those that Linux runs only where
nothing else wants to (SCHED_IDLE), it does not notice (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import psutil

BYSTANDERS = (
    "ray/_private/log_monitor.py",
    "ray/autoscaler/_private/monitor.py",
    "ray/dashboard/dashboard.py",
    "ray/_private/runtime_env/agent/main.py",
    "ray::DashboardAgent",
    "ray::Mailbox",
    "ray::_StatsActor",
    "ray::TrainController",
    "ray::SynchronizationActor",
)
"""Marks of their command lines. Not among them: who decodes or hands on clips, which a step may
wait for; and a worker that idles, which may come to train: who has once given way may not be able to
take it back."""


def let_bystanders_give_way() -> None:
    """Have those that this process's Ray has started run only where nothing else wants to.

    For a Ray of one's own, on one machine, once training has begun: before, they are what it waits
    for. Does nothing but on Linux.
    """
    if sys.platform != "linux":
        return
    for process in psutil.Process().children(recursive=True):
        # One that has just ended, or belongs to another user, needs none of it.
        with suppress(psutil.Error, OSError):
            if any(mark in part for part in process.cmdline() for mark in BYSTANDERS):
                for thread in process.threads():
                    os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))
