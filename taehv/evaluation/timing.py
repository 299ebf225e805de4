"""Measures the seconds and the memory of a computation."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

REPEATS = 5
"""Measurements, of which the median is taken."""

MAX_SECONDS = 6.0
"""No measurement is begun after this time, so a slow machine makes fewer."""


@dataclass(frozen=True)
class Cost:
    """What a computation takes."""

    seconds: float
    """Median."""
    peak_bytes: int | None
    """Peak memory beyond what was in use before: of the GPU, or of this process on a CPU. None
    where the system does not report it."""
    repeats: int


def measure(work: Callable[[], Any], device: torch.device) -> Cost:
    """Run `work` once to warm up, then several times, the device being idle before and after."""
    _synchronise(device)
    work()
    _synchronise(device)
    before = _reset_peak(device)
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < REPEATS and (not taken or time.perf_counter() - begin < MAX_SECONDS):
        start = time.perf_counter()
        work()
        _synchronise(device)
        taken.append(time.perf_counter() - start)
    peak = _peak(device)
    grown = None if before is None or peak is None else max(peak - before, 0)
    return Cost(median(taken), grown, len(taken))


def device_name(device: torch.device) -> str:
    """A name for the device in reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> int | None:
    """Reset the peak to the bytes in use now, and return those."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        # Linux: 5 sets the highest resident size back to the present one.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return int(psutil.Process().memory_info().rss)


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    highest = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(highest[0]) * 1024 if highest else None
