"""The interfaces of the training loop: the batches that it reads, and the hooks that it calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypedDict

import numpy as np

Row = dict[str, Any]
"""`step` and the metrics of that step by their names (`train/loss`, `val/psnr`, ...)."""


TransientFailure = tuple[int, ...]
"""An attempt at a video that failed for a transient reason, such as a time-out, in the data's own
terms. A checkpoint keeps all of them, so that a resumed run skips the same attempts."""


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
    transient_failures: list[TransientFailure]
    """Those among the attempts that preceded these clips."""
    decoded: int
    """Frames decoded for these clips that no earlier batch counts."""


class Data(Protocol):
    """Two streams of clips. A schedule yields, per batch, the int64 sample indices it is to hold,
    with -1 for surplus slots; all its arrays have the same length."""

    def training(
        self,
        schedule: Iterator[np.ndarray],
        transient_failures: Sequence[TransientFailure],
        stage: int = 0,
    ) -> Iterable[Batch]:
        """Clips of the training videos, augmented, of the size that this stage of the run has
        (`train.stages`, from 0). `transient_failures` are the run's so far."""

    def validation(self, schedule: Iterator[np.ndarray]) -> Iterable[Batch]:
        """Clips of the held-out videos, never augmented: sample 2v is a crop of the video's own
        pixels, sample 2v + 1 the whole picture of the same frames, scaled down."""


class Hooks:
    """Callbacks of the training loop. These do nothing; override the ones you need.

    All but `on_step` and `should_stop` are called on the main worker alone.
    """

    def on_step(self, step: int, samples: Sequence[int]) -> None:
        """A step was made. `step` is the number of steps so far, `samples` are this worker's."""

    def on_row(self, row: Row) -> None:
        """A row was added to metrics.jsonl."""

    def on_samples(self, step: int, original: np.ndarray, reconstructed: np.ndarray) -> None:
        """Some validation clips, uint8 [N, T, 3, H, W], and their reconstructions by the EMA."""

    def on_finding(self, name: str, message: str) -> None:
        """The health check `name` found a problem, which `message` describes."""

    def on_quarantined(self, rejected: Sequence[RejectedVideo], total: int) -> None:
        """Videos were added to the quarantine, which now lists `total`."""

    def should_stop(self) -> bool:
        """Asked after every step; True on any worker makes all save a checkpoint and return."""
        return False
