"""The bare training step: clips that lie in memory, nothing written or logged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from jobs.cli.config import Config
from taehv import distributed
from taehv.interfaces import Batch
from taehv.training.state import TrainState
from taehv.training.step import train_step

BATCHES = 4


def make_batches(config: Config) -> list[Batch]:
    """Smooth moving clips of the configuration's size, whole global batches."""
    data, batch_size = config.data, config.train.global_batch_size
    shape = (data.num_frames, 3, data.height, data.width)
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")

    def clip(sample: int) -> np.ndarray:
        random = np.random.default_rng(sample)
        waves = sum(
            axis * speed for axis, speed in zip(axes, random.uniform(-3, 3, 4), strict=True)
        )
        return (127.5 + 100 * np.sin(waves + random.uniform(0, 6))).astype(np.uint8)

    def batch(step: int) -> Batch:
        samples = np.arange(step * batch_size, (step + 1) * batch_size)
        return {
            "frames": np.stack([clip(int(sample)) for sample in samples]),
            "sample": samples,
            "video": [f"waves {sample}" for sample in samples],
            "rejected": [],
            "transient_failures": [],
            "decoded": 0,
        }

    return [batch(step) for step in range(BATCHES)]


def bare_step(config: Config) -> tuple[TrainState, Callable[[], None]]:
    """A training state, and what makes one step of it after the other; with several workers each
    calls it."""
    distributed.initialise()
    layout = config.train.layout(distributed.world_size())
    state = TrainState(config, layout.workers)
    own = slice(*(layout.slots_per_worker * (distributed.rank() + k) for k in (0, 1)))
    batches: Iterator[Batch] = cycle([_part(batch, own) for batch in make_batches(config)])
    ahead: list[Batch] = []

    def prefetch() -> None:
        batch = next(batches)
        ahead.append({**batch, "frames": distributed.pinned(batch["frames"])})

    def step() -> None:
        train_step(state, ahead.pop() if ahead else next(batches), None, cpu_work=prefetch)

    return state, step


def _part(batch: Batch, slots: slice) -> Batch:
    """A worker's part of a global batch that the workers divide."""
    part = {key: batch[key][slots] for key in ("frames", "sample", "video")}  # type: ignore[literal-required]
    return {**batch, **part}  # type: ignore[typeddict-item]


def as_tensors(batches: list[Batch]) -> list[Tensor]:
    """Their frames, uint8 [N, T, 3, H, W]."""
    return [torch.from_numpy(batch["frames"]) for batch in batches]
