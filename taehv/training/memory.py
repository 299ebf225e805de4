"""When a GPU's memory is too small: what was tried, what it took, and which settings would fit."""

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
from taehv.run.run_folder import go_on_line
from taehv.slots import SlotLayout
from taehv.training.config import TrainingConfig

USABLE = 0.9
"""Part of a device's memory that an estimate fills; fragments and CUDA itself take the rest."""

_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class DeviceMemory:
    """Of this worker's device, in bytes, after a pass was too large for it."""

    at_rest: int
    """Allocated between passes: weights, their averages, optimizer states, replay memory."""
    peak_allocated: int
    peak_reserved: int
    """What PyTorch had of the device, allocated or not."""
    total: int

    @classmethod
    def measured(cls, error: torch.OutOfMemoryError) -> DeviceMemory:
        """The figures after `error`. The pass is over: the tensors that its frames hold go."""
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        properties = torch.cuda.get_device_properties(distributed.device())
        return cls(torch.cuda.memory_allocated(), *peaks, properties.total_memory)


@contextmanager
def shortage_explained(
    config: TrainingConfig, layout: SlotLayout, clip_shape: Callable[[], tuple[int, ...]]
) -> Iterator[None]:
    """Turn PyTorch's own error into a `MemoryShortageError`, on the worker where it happens.

    Args:
        config: the run's configuration.
        layout: how the slots are shared out.
        clip_shape: gives [T, C, H, W] of the clips that were worked on last.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        memory = DeviceMemory.measured(error)
        shortage = Shortage(config, layout, clip_shape(), memory, requested_bytes(error))
        raise MemoryShortageError(
            f"{shortage}. Go on with {go_on_line(config.train.run_dir)} and {shortage.advice()}",
            shortage=str(shortage),
            halved_pass=halved_pass(layout),
        ) from error


def halved_pass(layout: SlotLayout) -> int:
    """Half of the present clips per pass, but a group at least; 0 where it is one already."""
    if layout.slots_per_pass == layout.slots_per_group:
        return 0
    return max(layout.slots_per_group, layout.slots_per_pass // 2)


def requested_bytes(error: torch.OutOfMemoryError) -> int:
    """What could not be allocated, where PyTorch's message says it; else 0."""
    found = re.search(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", str(error))
    return int(float(found[1]) * _BYTES[found[2]]) if found else 0


def release() -> None:
    """Give the device back what nothing refers to any more, and measure its peaks anew."""
    # Engines refer to themselves, so counting references does not end them.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True)
class Shortage:
    """A pass that was too large, and what would not be.

    By the estimate that what a pass takes, beyond what is there between passes, is proportional to
    its clips and to their pixels. Nobody knows what all of it would have taken; but it is at least
    what the device has.
    """

    config: TrainingConfig
    layout: SlotLayout
    clip_shape: tuple[int, ...]
    """[T, C, H, W]."""
    memory: DeviceMemory
    requested: int = 0
    """Bytes that could not be allocated."""

    def __str__(self) -> str:
        num_frames, _, height, width = self.clip_shape
        clips, memory = self.layout.slots_per_pass, self.memory
        precision = "fp32" if self.config.train.autocast_dtype() is None else "bf16"
        return (
            f"the GPU's memory does not hold a pass of {clips} {'clip' if clips == 1 else 'clips'} "
            f"of {num_frames}x{height}x{width} in {precision}: of its {_gib(memory.total)}, "
            f"{_gib(memory.peak_allocated)} were allocated at the peak "
            f"({_gib(memory.peak_reserved)} reserved), {_gib(memory.at_rest)} between passes"
        )

    def advice(self) -> str:
        """Settings that would fit, as they are typed."""
        train = self.config.train
        fitting = [clips for clips in self._smaller_passes() if self._takes(clips) <= self._room]
        ways = [f"--train.max-clips-per-pass {max(fitting)} (an estimate)"] if fitting else []
        if not train.gradient_checkpointing:
            fewest = "" if fitting else self._fewest_clips()
            ways.append(f"--train.gradient-checkpointing{fewest}, a third slower")
        elif not fitting:
            ways.append(f"{self._smaller_clips()}{self._fewest_clips()}")
            if self.config.teacher.path:
                ways.append("no --teacher.path")
        return ", or ".join(ways)

    @property
    def _room(self) -> float:
        """Bytes for what is there during a pass alone."""
        return USABLE * self.memory.total - self.memory.at_rest

    def _takes(self, clips: int) -> float:
        """Bytes that a pass of so many clips takes, at the least."""
        memory = self.memory
        failed = max(memory.peak_allocated + self.requested, memory.total) - memory.at_rest
        return failed * clips / self.layout.slots_per_pass

    def _smaller_passes(self) -> list[int]:
        """Clips per pass, fewer than now, by which a worker can work through its slots."""
        layout = self.layout
        numbers = range(layout.passes + 1, layout.groups_per_worker + 1)
        return [layout.slots_per_worker // n for n in numbers if layout.groups_per_worker % n == 0]

    def _fewest_clips(self) -> str:
        group = self.layout.slots_per_group
        return f" with --train.max-clips-per-pass {group}" if self._smaller_passes() else ""

    def _smaller_clips(self) -> str:
        """A size at which the smallest pass would fit."""
        _, _, height, width = self.clip_shape
        share = max(0.0, self._room) / self._takes(self.layout.slots_per_group)
        multiple = self.config.model.architecture.space_downscale
        height, width = (
            max(multiple, int(side * math.sqrt(min(1.0, share))) // multiple * multiple)
            for side in (height, width)
        )
        return f"--data.height {height} --data.width {width} (an estimate)"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
