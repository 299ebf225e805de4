"""What the training loop is given from outside: batches, and someone to tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict

import numpy as np

from taehv.journal import Row


class Batch(TypedDict):
    """One worker's part of a step."""

    frames: np.ndarray
    """uint8 [N, T, 3, H, W]."""
    sample: np.ndarray
    """int64 [N], the global index of each clip, -1 for a surplus slot."""
    video: list[str]
    """[N], each clip's path as annotated."""
    rejected: list[dict[str, str]]
    """Videos that could not be used and were replaced: `video` and `reason`."""


class Data(Protocol):
    """Two streams of clips. A schedule yields, per batch, the int64 sample indices it is to hold,
    with -1 for surplus slots; all its arrays have the same length."""

    def training(self, schedule: Iterator[np.ndarray]) -> Iterable[Batch]:
        """Clips of the training videos, augmented."""

    def validation(self, schedule: Iterator[np.ndarray]) -> Iterable[Batch]:
        """Clips of the held-out videos, never augmented."""


class Hooks:
    """What the loop tells. This one listens to nothing; override what is wanted.

    `on_row` and `on_samples` are called on the main worker alone, the others on every worker.
    """

    def on_step(self, step: int, samples: Sequence[int]) -> None:
        """A step was made; `step` counts it, `samples` are this worker's."""

    def on_row(self, row: Row) -> None:
        """A row was added to metrics.jsonl."""

    def on_samples(self, step: int, original: np.ndarray, reconstructed: np.ndarray) -> None:
        """Some validation clips, uint8 [N, T, 3, H, W], and the averaged weights' work on them."""

    def on_rejected(self, rejected: Sequence[Mapping[str, Any]]) -> None:
        """Videos that turned out to be unusable, each told once per worker."""

    def should_stop(self) -> bool:
        """Asked after every step; True on any worker makes all save a checkpoint and return."""
        return False
