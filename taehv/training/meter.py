"""Throughput and memory, for the rows of the log."""

import time

import psutil
import torch


class Meter:
    """Throughput since the last row."""

    def __init__(self, clips_per_step: int) -> None:
        self.clips_per_step = clips_per_step
        self._reset()

    def count_step(self) -> None:
        self._steps += 1

    def row(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._started
        on_gpu, memory = torch.cuda.is_available(), psutil.Process().memory_info()
        row = {
            "train/gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0,
            # Without shared pages, such as those of Ray's object store.
            "train/host_memory_gb": (memory.rss - getattr(memory, "shared", 0)) / 1e9,
            "train/clips_per_second": self._steps * self.clips_per_step / seconds,
        }
        self._reset()
        return row

    def _reset(self) -> None:
        self._started = time.perf_counter()
        self._steps = 0
