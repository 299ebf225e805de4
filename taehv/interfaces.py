"""What the training loop is given from outside: batches, and someone to tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypedDict

import numpy as np

Row = dict[str, Any]
"""`step` and the metrics of that step by their names (`train/loss`, `val/psnr`, ...)."""


Verdict = tuple[int, ...]
"""A judgement on a video that depended on the moment, such as a time-out, in the data's own terms.
A checkpoint keeps all of them, so that a run that goes on from it comes to the same ones."""


class RejectedVideo(TypedDict):
    """A video that could not be used."""

    video: str
    reason: str


class Batch(TypedDict):
    """One worker's part of a step."""

    frames: np.ndarray
    """uint8 [N, T, 3, H, W]."""
    sample: np.ndarray
    """int64 [N], the global index of each clip, -1 for a surplus slot."""
    video: list[str]
    """[N], each clip's path as annotated."""
    rejected: list[RejectedVideo]
    """Videos that could not be used and were replaced."""
    verdicts: list[Verdict]
    """Those that decided which videos these clips come from."""
    decoded: int
    """Frames that were decoded, and not counted before, to make these clips."""


class Data(Protocol):
    """Two streams of clips. A schedule yields, per batch, the int64 sample indices it is to hold,
    with -1 for surplus slots; all its arrays have the same length."""

    def training(
        self, schedule: Iterator[np.ndarray], verdicts: Sequence[Verdict]
    ) -> Iterable[Batch]:
        """Clips of the training videos, augmented; `verdicts` are those of the run so far."""

    def validation(self, schedule: Iterator[np.ndarray]) -> Iterable[Batch]:
        """Clips of the held-out videos, never augmented."""


class Hooks:
    """What the loop tells. This one listens to nothing; override what is wanted.

    All but `on_step` and `should_stop` are called on the main worker alone.
    """

    def on_step(self, step: int, samples: Sequence[int]) -> None:
        """A step was made; `step` counts it, `samples` are this worker's."""

    def on_row(self, row: Row) -> None:
        """A row was added to metrics.jsonl."""

    def on_samples(self, step: int, original: np.ndarray, reconstructed: np.ndarray) -> None:
        """Some validation clips, uint8 [N, T, 3, H, W], and the averaged weights' work on them."""

    def on_finding(self, name: str, message: str) -> None:
        """A health check found something: its name, and what in words."""

    def on_quarantined(self, rejected: Sequence[RejectedVideo], total: int) -> None:
        """Videos were added to the quarantine, which has `total` now."""

    def should_stop(self) -> bool:
        """Asked after every step; True on any worker makes all save a checkpoint and return."""
        return False
