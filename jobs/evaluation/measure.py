"""One video scored by all methods: the unit of work, whoever does it and wherever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from data_pipeline.config import DataConfig
from data_pipeline.decoding.whole_video import VideoFacts, WholeRequest, WholeVideo
from data_pipeline.errors import UnusableVideoError
from data_pipeline.held_out import HeldOutVideo, fixed_clips
from jobs.cli.errors import ConfigError
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.methods import Methods
from jobs.evaluation.reading import VideoReader
from taehv.evaluation.frames import FrameScorer
from taehv.evaluation.methods import Method
from taehv.evaluation.rate import LatentStatistics
from taehv.evaluation.scores import Scores, clip_scores, psnr_of
from taehv.evaluation.structure import SSIM_WINDOW

PIECE_FRAMES = 8
"""Frames of a whole video that are scored at a time."""

PER_FRAME = ("psnr", "ssim", "temporal", "flicker")
"""What is kept of each frame."""

OF_ORIGINAL = ("motion", "brightness", "static", "flicker_original")
"""Scores that depend on the original alone."""


@dataclass(frozen=True)
class ClipResult:
    """A clip, or a whole video."""

    first_frame: int
    frames: int
    height: int
    width: int
    original: Scores
    """What the original is like: see `OF_ORIGINAL`."""
    scores: dict[str, Scores]
    """By method."""
    per_frame: dict[str, dict[str, list[float]]]
    """By method and by score."""


@dataclass(frozen=True)
class VideoResult:
    """A video with all its clips."""

    video: str
    facts: VideoFacts
    clips: list[ClipResult]
    latents: LatentStatistics
    """The network's, over all the clips."""


@dataclass(frozen=True)
class Sampling:
    """What is read of a video."""

    data: DataConfig
    clips_per_video: int
    whole: bool
    multiple: int
    """Whole frames are cut to a multiple of this."""

    @classmethod
    def of(cls, config: EvaluateConfig, multiple: int) -> Sampling:
        """Raises ConfigError for clips whose size is no such multiple."""
        for name in ("height", "width"):
            size = getattr(config.data, name)
            if size % multiple or size < 16:
                raise ConfigError(
                    f"data.{name} is {size}: these networks need a multiple of {multiple}, at "
                    "least 16"
                )
        return cls(config.data, config.clips_per_video, config.whole_frames, multiple)


def score_video(
    video: HeldOutVideo, sampling: Sampling, methods: Methods, read: VideoReader
) -> VideoResult:
    """Score a video. The result depends on the arguments alone, and memory not on its length.

    Raises UnusableVideoError where it cannot give its clips.
    """
    latents = LatentStatistics()
    network = methods.network.with_transform(latents.observe)
    methods = replace(methods, all=[network, *methods.all[1:]])
    if sampling.whole:
        facts, clip = _score_whole(video, sampling, methods, read)
        return VideoResult(video.name, facts, [clip], latents)
    facts, clips = read_clips(video, sampling, read, methods.device)
    results = []
    for first_frame, frames in clips:
        scorers = {}
        for method in methods.all:
            scorers[method.key] = FrameScorer(methods.lpips)
            scorers[method.key].add(frames[0], method.clip(frames)[0])
        _, t, _, height, width = frames.shape
        results.append(_result(first_frame, (t, height, width), scorers))
    return VideoResult(video.name, facts, results, latents)


def read_clips(
    video: HeldOutVideo, sampling: Sampling, read: VideoReader, device: torch.device
) -> tuple[VideoFacts, list[tuple[int, Tensor]]]:
    """A video's fixed clips: the first frame of each, and its frames, [1, T, 3, H, W] in [0, 1]."""
    facts, clips = fixed_clips(video, sampling.data, sampling.clips_per_video, read)
    return facts, [
        (clip.first_frame, torch.from_numpy(clip.frames).to(device).float()[None] / 255)
        for clip in clips
    ]


def _score_whole(
    video: HeldOutVideo, sampling: Sampling, methods: Methods, read: VideoReader
) -> tuple[VideoFacts, ClipResult]:
    """Each method reads the video for itself: kept for all, it would not fit in memory."""
    scorers = {}
    for method in methods.all:
        scorers[method.key] = scorer = FrameScorer(methods.lpips)
        whole, pairs = stream_pairs(video, sampling.multiple, method, read, methods.device)
        while piece := list(islice(pairs, PIECE_FRAMES)):
            originals, reconstructions = zip(*piece, strict=True)
            scorer.add(torch.cat(originals), torch.cat(reconstructions))
    size = (whole.frames, whole.height, whole.width)
    return whole.facts, _result(whole.first_frame, size, scorers)


def stream_pairs(
    video: HeldOutVideo,
    multiple: int,
    method: Method,
    read: VideoReader,
    device: torch.device,
    limit: int = 0,
) -> tuple[WholeVideo, Iterator[tuple[Tensor, Tensor]]]:
    """What is read, and each frame with its reconstruction, [1, 3, H, W] in [0, 1].

    limit: at most so many frames; 0: all. Raises UnusableVideoError, also from the iteration.
    """
    request = WholeRequest(video.location, multiple, span=video.span, limit=limit)
    whole, pieces = read.whole(request)
    if min(whole.height, whole.width) < SSIM_WINDOW:
        pieces.close()
        raise UnusableVideoError(
            f"has frames of {whole.height}x{whole.width} pixels, too small for SSIM"
        )

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        # Frames wait here for as long as the method takes to answer: a latent or two.
        waiting: list[Tensor] = []

        def frames() -> Iterator[Tensor]:
            for piece in pieces:
                for frame in torch.from_numpy(piece).to(device).float().div(255):
                    waiting.append(frame[None])
                    yield frame[None]

        for reconstructed in method.stream(frames(), whole.frames):
            yield waiting.pop(0), reconstructed

    return whole, pairs()


def _result(
    first_frame: int, size: tuple[int, int, int], scorers: dict[str, FrameScorer]
) -> ClipResult:
    tables = {key: scorer.table() for key, scorer in scorers.items()}
    scores = {key: clip_scores(table) for key, table in tables.items()}
    per_frame = {
        key: {
            name: (psnr_of(table["mse"]) if name == "psnr" else table[name]).tolist()
            for name in PER_FRAME
        }
        for key, table in tables.items()
    }
    first = next(iter(scores.values()))
    original = {name: first[name] for name in OF_ORIGINAL}
    own = {
        key: {name: value for name, value in found.items() if name not in OF_ORIGINAL}
        for key, found in scores.items()
    }
    return ClipResult(first_frame, *size, original, own, per_frame)
