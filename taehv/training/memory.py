"""When a GPU's memory is too small: the failed pass, its memory, and settings that would fit."""

from __future__ import annotations

import gc
import math
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from taehv import distributed
from taehv.errors import MemoryShortageError
from taehv.run.run_folder import resume_options
from taehv.slots import SlotLayout
from taehv.training.config import TrainingConfig

USABLE = 0.9
"""Fraction of a device's memory that an estimate may fill; fragmentation and CUDA take the rest."""

_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of this worker's device, in bytes, after a pass was too large for it."""

    between_passes: int
    """Allocated between passes: weights, their averages, optimizer states, replay memory."""
    peak_allocated: int
    peak_reserved: int
    """Held by PyTorch's allocator, whether allocated or not."""
    total: int

    @classmethod
    def measured(cls, error: torch.OutOfMemoryError) -> DeviceMemory:
        """The figures after `error`, once the tensors of its stack frames have been freed."""
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        properties = torch.cuda.get_device_properties(distributed.device())
        return cls(torch.cuda.memory_allocated(), *peaks, properties.total_memory)


@contextmanager
def explain_memory_shortage(
    config: TrainingConfig, layout: SlotLayout, clip_shape: Callable[[], tuple[int, ...]]
) -> Iterator[None]:
    """Turn PyTorch's out-of-memory error into a `MemoryShortageError` with advice. `clip_shape`
    returns [T, C, H, W] of the last batch."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        memory = DeviceMemory.measured(error)
        shortage = Shortage(config, layout, clip_shape(), memory, requested_bytes(error))
        raise MemoryShortageError(
            f"{shortage}. Go on with {resume_options(config.train.run_dir)} and "
            f"{shortage.advice()}",
            shortage=str(shortage),
            halved_pass=halved_pass(layout),
        ) from error


def halved_pass(layout: SlotLayout) -> int:
    """Half of the present clips per pass, at least one group; 0 if a pass is one group already."""
    if layout.slots_per_pass == layout.slots_per_group:
        return 0
    return max(layout.slots_per_group, layout.slots_per_pass // 2)


def requested_bytes(error: torch.OutOfMemoryError) -> int:
    """The size of the allocation that failed, by PyTorch's message; 0 if it does not say."""
    found = re.search(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", str(error))
    return int(float(found[1]) * _BYTES[found[2]]) if found else 0


def release_gpu_memory() -> None:
    """Free the device memory of unreachable objects, and reset the peak statistics."""
    # Engines are in reference cycles.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True)
class Shortage:
    """A pass that was too large, and an estimate of passes that would fit.

    The estimate takes a pass's memory, beyond what is allocated between passes, as proportional to
    its clips and to their pixels. How much the failed pass would have needed is unknown, but it is
    at least what the device has.
    """

    config: TrainingConfig
    layout: SlotLayout
    clip_shape: tuple[int, ...]
    """[T, C, H, W]."""
    memory: DeviceMemory
    requested: int = 0
    """Bytes of the allocation that failed."""

    def __str__(self) -> str:
        num_frames, _, height, width = self.clip_shape
        clips, memory = self.layout.slots_per_pass, self.memory
        precision = "fp32" if self.config.train.autocast_dtype() is None else "bf16"
        return (
            f"the GPU's memory does not hold a pass of {clips} {'clip' if clips == 1 else 'clips'} "
            f"of {num_frames}x{height}x{width} in {precision}: of its {_gib(memory.total)}, "
            f"{_gib(memory.peak_allocated)} were allocated at the peak "
            f"({_gib(memory.peak_reserved)} reserved), {_gib(memory.between_passes)} between passes"
        )

    def advice(self) -> str:
        """Options that would fit, as the user types them."""
        train = self.config.train
        fitting = [
            clips for clips in self._smaller_passes() if self._bytes_of_pass(clips) <= self._usable
        ]
        options = [f"--train.max-clips-per-pass {max(fitting)} (an estimate)"] if fitting else []
        if not train.gradient_checkpointing:
            smallest = "" if fitting else self._smallest_pass()
            options.append(f"--train.gradient-checkpointing{smallest}, a third slower")
        elif not fitting:
            options.append(f"{self._smaller_clips()}{self._smallest_pass()}")
            if self.config.teacher.path:
                options.append("no --teacher.path")
        return ", or ".join(options)

    @property
    def _usable(self) -> float:
        """Bytes that a pass may allocate."""
        return USABLE * self.memory.total - self.memory.between_passes

    def _bytes_of_pass(self, clips: int) -> float:
        """Lower bound on the bytes of a pass of so many clips."""
        memory = self.memory
        failed = max(memory.peak_allocated + self.requested, memory.total) - memory.between_passes
        return failed * clips / self.layout.slots_per_pass

    def _smaller_passes(self) -> list[int]:
        """Numbers of clips per pass, below the present one, that divide a worker's slots evenly."""
        layout = self.layout
        numbers = range(layout.passes + 1, layout.groups_per_worker + 1)
        return [layout.slots_per_worker // n for n in numbers if layout.groups_per_worker % n == 0]

    def _smallest_pass(self) -> str:
        group = self.layout.slots_per_group
        return f" with --train.max-clips-per-pass {group}" if self._smaller_passes() else ""

    def _smaller_clips(self) -> str:
        """A size at which the smallest pass would fit."""
        _, _, height, width = self.clip_shape
        ratio = max(0.0, self._usable) / self._bytes_of_pass(self.layout.slots_per_group)
        multiple = self.config.model.architecture.space_downscale
        height, width = (
            max(multiple, int(side * math.sqrt(min(1.0, ratio))) // multiple * multiple)
            for side in (height, width)
        )
        return f"--data.height {height} --data.width {width} (an estimate)"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
