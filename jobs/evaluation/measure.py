"""One video scored by all methods: the unit of work, whoever does it and wherever."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from data_pipeline.config import DataConfig
from data_pipeline.decoding.damage import LostFramesError
from data_pipeline.decoding.whole_video import VideoFacts, WholeRequest
from data_pipeline.errors import UnusableVideoError
from data_pipeline.held_out import (
    SMALLEST_SIDE,
    Clip,
    ClipSize,
    HeldOutVideo,
    native_windows,
    shrunk_clips,
    trained_clips,
)
from jobs.cli.errors import ConfigError
from jobs.cli.progress import FrameProgress
from jobs.cli.weights import find_weights, run_config
from jobs.evaluation.config import EvaluateConfig
from jobs.evaluation.methods import Methods
from jobs.evaluation.reading import VideoReader
from jobs.evaluation.streaming import sound_parts, stream_video
from taehv.evaluation import metrics
from taehv.evaluation.artifacts import Parts, parts_of
from taehv.evaluation.frames import FrameScorer
from taehv.evaluation.metrics import psnr_of
from taehv.evaluation.rate import LatentStatistics
from taehv.evaluation.scores import Scores, clip_scores

FEWEST_FRAMES = 9
"""Of a window, by default: fewer say little of what moves."""

PER_FRAME = ("psnr", "ssim", "temporal", "flicker")
"""What is kept of each frame."""

OF_ORIGINAL = ("motion", "brightness", "static", "flicker_original", "spread")
"""Scores that depend on the original alone."""


@dataclass(frozen=True)
class ClipResult:
    """A clip, or a whole video."""

    first_frame: int
    place: tuple[int, int]
    """Left and top of its crop in the upright frame, pixels; of a whole video 0."""
    frames: int
    height: int
    width: int
    original: Scores
    """What the original is like: see `OF_ORIGINAL`."""
    scores: dict[str, Scores]
    """By method."""
    per_frame: dict[str, dict[str, list[float]]]
    """By method and by score."""
    artifacts: dict[str, Parts]
    """By method: what it gives to the figures over clips of `taehv.evaluation.artifacts`."""


@dataclass(frozen=True)
class VideoResult:
    """A video with all its clips."""

    video: str
    facts: VideoFacts
    clips: list[ClipResult]
    """Of a whole video the stretches that decode: one, unless it is damaged."""
    lost: list[str]
    """Which frames of a whole video are lost, and why."""
    latents: LatentStatistics
    """The network's, over all the clips."""
    trained: list[float]
    """MSE of the network on clips as it was trained on; empty where that is not known."""


@dataclass(frozen=True)
class Sampling:
    """What is read of a video."""

    mode: Literal["windows", "shrunk clips", "whole frames"]
    data: DataConfig
    clips_per_video: int
    window: ClipSize
    """Of the windows, where the video has as much."""
    multiple: int
    """Height and width are a multiple of this."""
    limit: int
    """Most frames of a whole video; 0: all."""
    trained: DataConfig | None
    """What the network was trained on, where it is to be told how it does there."""

    @classmethod
    def of(cls, config: EvaluateConfig, multiple: int) -> Sampling:
        """Raises ConfigError for options that exclude each other, and for clips whose size is no
        such multiple."""
        if config.frames and not config.whole_frames:
            raise ConfigError(
                f"frames is {config.frames}, which bounds a video of --whole-frames; the frames of "
                "a clip are window_frames or data.num_frames"
            )
        data = config.data
        frames = config.window_frames or max(data.num_frames, FEWEST_FRAMES)
        window = ClipSize(frames, config.window_height, config.window_width)
        run = run_config(find_weights(config.checkpoint))
        # A run with stages ends with the last one's clips.
        last = run.each_stage()[-1].data if run else None
        trained = last if last and last.crops != "native" else None
        if config.whole_frames:
            mode: Literal["windows", "shrunk clips", "whole frames"] = "whole frames"
        elif config.clips == "native":
            mode = "windows"
            for name in ("height", "width"):
                size = getattr(window, name)
                if size < max(multiple, SMALLEST_SIDE):
                    raise ConfigError(
                        f"window_{name} is {size}: these networks need at least "
                        f"{max(multiple, SMALLEST_SIDE)}"
                    )
        else:
            mode, trained = "shrunk clips", None
            for name in ("height", "width"):
                size = getattr(data, name)
                if size % multiple or size < SMALLEST_SIDE:
                    raise ConfigError(
                        f"data.{name} is {size}: these networks need a multiple of {multiple}, at "
                        f"least {SMALLEST_SIDE}"
                    )
        return cls(mode, data, config.clips_per_video, window, multiple, config.frames, trained)

    @property
    def whole(self) -> bool:
        """Whether every frame is scored."""
        return self.mode == "whole frames"

    @property
    def size(self) -> ClipSize:
        """Of the clips."""
        if self.mode == "windows":
            return self.window
        return ClipSize(self.data.num_frames, self.data.height, self.data.width)

    def describe(self) -> str:
        """What is scored of each video."""
        size, count = self.size, self.clips_per_video
        frames = f"{size.frames} frame{'s' if size.frames > 1 else ''}"
        plural = "s" if count > 1 else ""
        if self.whole:
            extent = f"the first {self.limit} frames" if self.limit else "every frame"
            return f"{extent} of each, in its own size"
        if self.mode == "windows":
            return (
                f"{count} window{plural} of {frames} of {size.height}x{size.width} of each, in the "
                "videos' own pixels"
            )
        return (
            f"{count} clip{plural} of {frames} of each, the whole picture scaled down to "
            f"{size.height}x{size.width}"
        )


def score_video(
    video: HeldOutVideo, sampling: Sampling, methods: Methods, read: VideoReader
) -> VideoResult:
    """Score a video. The result depends on the arguments alone, and memory not on its length.

    Raises UnusableVideoError where it cannot give its clips.
    """
    latents = LatentStatistics()
    network = methods.network.with_transform(latents.observe)
    observed = replace(methods, all=[network, *methods.all[1:]])
    lost: list[str] = []
    if sampling.whole:
        request = whole_request(video, sampling, sampling.limit)
        try:
            facts, clip = _score_whole(video.name, request, observed, read)
            results = [clip]
        except LostFramesError:
            latents = LatentStatistics()
            network = methods.network.with_transform(latents.observe)
            observed = replace(methods, all=[network, *methods.all[1:]])
            parts, missing = sound_parts(request, read)
            scored = [_score_whole(video.name, part, observed, read) for part in parts]
            facts, results = scored[0][0], [clip for _, clip in scored]
            lost = [str(frames) for frames in missing]
    else:
        facts, clips = read_clips(video, sampling, read)
        results = [_score_clip(clip, observed) for clip in clips]
    trained = _score_trained(video, facts, sampling, methods, read)
    return VideoResult(video.name, facts, results, lost, latents, trained)


def read_clips(
    video: HeldOutVideo, sampling: Sampling, read: VideoReader
) -> tuple[VideoFacts, list[Clip]]:
    """A video's fixed clips."""
    data, count = sampling.data, sampling.clips_per_video
    facts = read.facts(video.location, data.stream)
    if sampling.mode == "windows":
        window, multiple = sampling.window, sampling.multiple
        return facts, native_windows(video, facts, window, multiple, data, count, read)
    return facts, shrunk_clips(video, facts, data, count, read)


def frames_of(clip: Clip, device: torch.device) -> Tensor:
    """[1, T, 3, H, W] in [0, 1]."""
    return torch.from_numpy(clip.frames).to(device).float()[None] / 255


def _score_clip(clip: Clip, methods: Methods) -> ClipResult:
    frames = frames_of(clip, methods.device)
    scorer = FrameScorer(methods.lpips)
    scorer.add(frames[0], {method.key: method.clip(frames)[0] for method in methods.all})
    _, t, _, height, width = frames.shape
    return _result(clip.first_frame, clip.place, (t, height, width), scorer, methods)


def _score_trained(
    video: HeldOutVideo,
    facts: VideoFacts,
    sampling: Sampling,
    methods: Methods,
    read: VideoReader,
) -> list[float]:
    """The network's MSE on clips as it was trained on. A video of which whole frames are scored may
    give none."""
    if sampling.trained is None:
        return []
    try:
        clips = trained_clips(video, facts, sampling.trained, sampling.clips_per_video, read)
    except UnusableVideoError:
        if sampling.whole:
            return []
        raise
    found = []
    for clip in clips:
        frames = frames_of(clip, methods.device)
        found.append(metrics.mse(frames, methods.network.clip(frames)).item())
    return found


def _score_whole(
    name: str, request: WholeRequest, methods: Methods, read: VideoReader
) -> tuple[VideoFacts, ClipResult]:
    scorer = FrameScorer(methods.lpips)
    whole, frames = stream_video(request, methods.all, read, methods.device)
    with closing(FrameProgress(name, whole.frames)) as progress:
        # One after the other: a CPU's caches hold no more.
        for original, reconstructions in frames:
            scorer.add(original, reconstructions)
            progress.add(len(original))
    size = (whole.frames, whole.height, whole.width)
    return whole.facts, _result(whole.first_frame, (0, 0), size, scorer, methods)


def whole_request(video: HeldOutVideo, sampling: Sampling, limit: int = 0) -> WholeRequest:
    """All frames of a video, in its own size; limit: at most so many, 0: all."""
    return WholeRequest(
        video.location,
        sampling.multiple,
        span=video.span,
        limit=limit,
        stream=sampling.data.stream,
        deinterlace=sampling.data.deinterlace,
    )


def _result(
    first_frame: int,
    place: tuple[int, int],
    size: tuple[int, int, int],
    scorer: FrameScorer,
    methods: Methods,
) -> ClipResult:
    tables = scorer.tables()
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
    alignment = methods.network.model.alignment
    artifacts = {key: parts_of(table, alignment) for key, table in tables.items()}
    return ClipResult(first_frame, place, *size, original, own, per_frame, artifacts)
