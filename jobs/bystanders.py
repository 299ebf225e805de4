"""Processes of Ray's that have no part in a step, made to give way to it on a machine of its own.

Each of them wakes a hundred times a second, for less than a tenth of a millisecond. That alone is
little, but an operation of PyTorch ends with the slowest of its threads, so that what any of them
takes from one core is lost on all. Linux runs them half as often where others want the core
(SCHED_IDLE); what that brings is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import psutil

BYSTANDERS = (
    "ray::DashboardAgent",
    "ray::Mailbox",
    "ray::_AutoscalingCoordinatorActor",
    "ray::_StatsActor",
    "ray::TrainController",
    "ray::SynchronizationActor",
)
"""Marks of their command lines. Not among them: the raylet and the GCS, which look after each other
by the clock; the agent of runtime environments, which sleeps; who hands on clips, which a step may
wait for; and a worker that idles, which may come to train: who has once given way may not be able
to take it back."""


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
