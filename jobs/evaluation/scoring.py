"""Scoring videos, and measuring what that costs, wherever a worker runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from data_pipeline.clips import Rejection
from data_pipeline.errors import DataError, UnusableVideoError
from data_pipeline.held_out import HeldOutVideo
from jobs.cluster.fan_out import FanOut
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.cost import Costs, costs
from jobs.evaluation.measure import Sampling, VideoResult, score_video
from jobs.evaluation.methods import Methods
from jobs.evaluation.probing import probe_network
from jobs.evaluation.reading import VideoReader
from jobs.evaluation.table import sample_line
from taehv import distributed
from taehv.evaluation.probes import Probes

log = logging.getLogger(__name__)

MOST_NAMED = 5
"""Lost ranges of a video that a line names; metrics.json has all."""

PROBED_VIDEOS = 3

ScoredVideo = tuple[HeldOutVideo, VideoResult]


def score_videos(
    videos: Sequence[HeldOutVideo],
    refused: Sequence[Rejection],
    sampling: Sampling,
    methods: Methods,
    workers: FanOut,
    config: EvaluateConfig,
) -> tuple[list[ScoredVideo], list[Rejection]]:
    """Score every video, and print a line of each. Gives the scored ones in their order, and those
    that were skipped, the `refused` first, each of which is logged.

    Raises DataError where too many videos cannot be used.
    """
    scored: dict[int, VideoResult] = {}
    skipped = [_log_skipped(rejection) for rejection in refused]
    worker = partial(ScoringWorker, sampling, config.data.decode_seconds)
    for answer in workers.each(worker, methods, list(enumerate(videos))):
        if isinstance(answer.outcome, VideoResult):
            scored[answer.index] = answer.outcome
            if lost := answer.outcome.lost:
                log.warning(
                    "video %s: %s; what decodes is scored, in %d stretches",
                    answer.outcome.video,
                    "; ".join(lost[:MOST_NAMED]),
                    len(answer.outcome.clips),
                )
            line = sample_line(len(scored), len(videos), answer.outcome, answer.seconds)
            print(line, flush=True)
            continue
        skipped.append(_log_skipped(answer.outcome))
        unusable = len(skipped) - len(refused)
        if unusable > config.max_bad_fraction * len(videos):
            raise DataError(
                f"{unusable} of {len(videos)} held-out videos cannot be used, more than "
                f"max_bad_fraction ({config.max_bad_fraction:g}); the last of them is "
                f"{skipped[-1].video} ({skipped[-1].reason})"
            )
    if not scored:
        raise DataError(
            f"none of the {len(skipped)} held-out videos can be used; the last of them is "
            f"{skipped[-1].video} ({skipped[-1].reason})"
        )
    return [(videos[index], scored[index]) for index in sorted(scored)], skipped


def measure_costs(methods: Methods, workers: FanOut) -> Costs:
    """What the methods cost. To be called when all is scored, so that nothing else is running."""
    return next((workers if workers.has_gpus else FanOut()).each(CostWorker, methods, [None]))


def probe(
    scored: Sequence[ScoredVideo],
    sampling: Sampling,
    methods: Methods,
    workers: FanOut,
    config: EvaluateConfig,
) -> Probes:
    """What the network makes of pictures that are made for it, some from the first videos."""
    videos = [video for video, _ in scored[:PROBED_VIDEOS]]
    worker = partial(ProbeWorker, sampling, config.data.decode_seconds)
    return next((workers if workers.has_gpus else FanOut()).each(worker, methods, [videos]))


def _log_skipped(rejection: Rejection) -> Rejection:
    log.warning("video %s is skipped: %s", rejection.video, rejection.reason)
    return rejection


@dataclass(frozen=True)
class ScoringAnswer:
    """What came of a video."""

    index: int
    """In the list of videos."""
    outcome: VideoResult | Rejection
    seconds: float


class ScoringWorker:
    """Scores one video after the other; see `jobs.cluster.fan_out.Worker`."""

    def __init__(self, sampling: Sampling, decode_seconds: float, methods: Methods) -> None:
        """decode_seconds: time limit for one window of a video."""
        methods.move_to(distributed.device())
        self._methods, self._sampling = methods, sampling
        self._read = VideoReader(decode_seconds)

    def __call__(self, piece: tuple[int, HeldOutVideo]) -> ScoringAnswer:
        index, video = piece
        start = time.perf_counter()
        outcome: VideoResult | Rejection
        try:
            outcome = score_video(video, self._sampling, self._methods, self._read)
        except UnusableVideoError as error:
            outcome = Rejection(video.name, str(error))
        return ScoringAnswer(index, outcome, time.perf_counter() - start)

    def close(self) -> None:
        self._read.close()


class ProbeWorker:
    """Probes the network on the device that a worker has."""

    def __init__(self, sampling: Sampling, decode_seconds: float, methods: Methods) -> None:
        methods.move_to(distributed.device())
        self._methods, self._sampling = methods, sampling
        self._read = VideoReader(decode_seconds)

    def __call__(self, piece: list[HeldOutVideo]) -> Probes:
        return probe_network(piece, self._sampling, self._methods, self._read)

    def close(self) -> None:
        self._read.close()


class CostWorker:
    """Measures what the methods cost on the device that a worker has."""

    def __init__(self, methods: Methods) -> None:
        methods.move_to(distributed.device())
        self._methods = methods

    def __call__(self, piece: None) -> Costs:
        return costs(self._methods)

    def close(self) -> None: ...
