"""Scoring videos, wherever a worker runs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from data_pipeline.errors import UnusableVideoError
from data_pipeline.held_out import HeldOutVideo
from jobs.evaluation.contestants import Contestants
from jobs.evaluation.cost import Costs, costs
from jobs.evaluation.measure import Sampling, VideoResult, score_video
from jobs.evaluation.reading import VideoReader
from taehv import distributed


@dataclass(frozen=True)
class ScoringTask:
    """What is the same for every video."""

    contestants: Contestants
    sampling: Sampling
    decode_seconds: float
    """Time limit for one window of a video."""


@dataclass(frozen=True)
class Scored:
    """What came of a video."""

    index: int
    """In the list of videos."""
    video: HeldOutVideo
    result: VideoResult | None
    """None where the video cannot be used."""
    reason: str
    seconds: float


class ScoringWorker:
    """Scores one video after the other; see `jobs.cluster.fan_out.Worker`."""

    def __init__(self, task: ScoringTask) -> None:
        self._task = task
        self._contestants = task.contestants.on(distributed.device())
        self._read = VideoReader(task.decode_seconds)

    def __call__(self, piece: tuple[int, HeldOutVideo]) -> Scored:
        index, video = piece
        start = time.perf_counter()
        found, reason = None, ""
        try:
            found = score_video(
                video,
                self._task.sampling,
                self._contestants.methods,
                self._read,
                self._contestants.device,
                self._contestants.perceptual,
            )
        except UnusableVideoError as error:
            reason = str(error)
        return Scored(index, video, found, reason, time.perf_counter() - start)

    def close(self) -> None:
        self._read.close()


class CostWorker:
    """Measures what the methods cost on the device that a worker has."""

    def __init__(self, contestants: Contestants) -> None:
        self._contestants = contestants.on(distributed.device())

    def __call__(self, piece: None) -> Costs:
        return costs(self._contestants)

    def close(self) -> None:
        pass
