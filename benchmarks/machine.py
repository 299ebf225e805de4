"""What this machine can do at most, measured: matrix products and copies; and a stopwatch.

Every figure of a benchmark is a median, taken in turns with what it is compared to, so that a
busy moment of the machine hits both.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK_HELP = "cpu: CPU seconds on one thread, for a machine that does other work too"


@dataclass(frozen=True)
class Machine:
    """Upper limits."""

    flops: float
    """Of a large matrix product, per second, in the precision that is measured."""
    bytes_per_second: float
    """Read and written by a large copy."""


def medians(
    works: Mapping[str, Callable[[], Any]],
    device: torch.device,
    repeats: int,
    clock: str = "wall",
) -> dict[str, float]:
    """Median seconds of each piece of work, all in turns; on CUDA by events."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds(work, device, clock))
    return {name: statistics.median(values) for name, values in taken.items()}


def seconds(work: Callable[[], Any], device: torch.device, clock: str = "wall") -> float:
    """Seconds of one run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return float(begin.elapsed_time(end)) / 1e3
    start = CLOCKS[clock]()
    work()
    return CLOCKS[clock]() - start


def measure_machine(
    device: torch.device, dtype: torch.dtype, clock: str = "wall", repeats: int = 9
) -> Machine:
    """Rates of a matrix product in `dtype` and of a copy that no cache holds: the best of several,
    since a limit is what the machine can do when nothing disturbs it."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    source = torch.ones(2**30 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    product = min(seconds(lambda: a @ b, device, clock) for _ in range(repeats))
    copy = min(seconds(lambda: target.copy_(source), device, clock) for _ in range(repeats))
    return Machine(2 * n**3 / product, 2 * source.nbytes / copy)


def machine_name(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    models = [
        line.split(":")[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    name = models[0] if models else platform.processor()
    return f"{torch.get_num_threads()} threads of {name}, torch {torch.__version__}"
