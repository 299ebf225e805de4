"""What an evaluation shows: comparison videos, latents, and stills of the worst clips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipeline.held_out import HeldOutVideo
from jobs.evaluation.measure import Sampling, VideoResult, frames_of, read_clips, whole_request
from jobs.evaluation.methods import Methods
from jobs.evaluation.reading import VideoReader
from jobs.evaluation.scoring import ScoredVideo
from jobs.evaluation.streaming import stream_video
from jobs.media.latents import latent_png
from jobs.media.mp4 import Mp4Writer, Picture
from jobs.media.pictures import DIFFERENCE_GAIN, difference, picture_of, side_by_side
from taehv.evaluation.methods import Method

CLIP_FPS = 8.0
"""Of a clip's video: slow enough to see what flickers."""

MOST_FRAMES = 240
"""Of a whole video that is shown."""


@dataclass(frozen=True)
class WorstClip:
    """A clip that the network reconstructs badly."""

    video: int
    """Index into the results."""
    clip: int
    frame: int
    """Of the clip: the one that is shown, its worst."""
    pictures: list[tuple[str, Path]]
    """What each shows, and its file."""


def write_samples(
    chosen: Sequence[ScoredVideo],
    sampling: Sampling,
    methods: Methods,
    read: VideoReader,
    folder: Path,
) -> None:
    """test_K_original, _reconstructed and _comparison.mp4, and test_K_latents.png, of each."""
    for number, (video, result) in enumerate(chosen):
        network, stem = methods.network, folder / "comparison_videos" / f"test_{number}"
        fps = result.facts.fps if sampling.whole else CLIP_FPS
        with ExitStack() as stack:
            writers = [
                stack.enter_context(Mp4Writer(stem.with_name(f"{stem.name}_{kind}.mp4"), fps))
                for kind in ("original", "reconstructed", "comparison")
            ]
            shown: list[Tensor] = []
            for original, reconstructed in _pairs(video, result, sampling, methods, read):
                first, second = picture_of(original), picture_of(reconstructed)
                pictures = (first, second, side_by_side(first, second))
                for writer, picture in zip(writers, pictures, strict=True):
                    writer.add(picture)
                if len(shown) < sampling.data.num_frames:
                    shown.append(original)
        with torch.no_grad():
            latents = network.encode(torch.stack(shown, dim=1))
        latent_png(latents[0], folder / "latent_visualizations" / f"test_{number}_latents.png")


def worst_clips(
    scored: Sequence[ScoredVideo],
    sampling: Sampling,
    methods: Methods,
    read: VideoReader,
    folder: Path,
    count: int,
) -> list[WorstClip]:
    """The clips with the lowest PSNR, the worst first, each with stills of its worst frame. Those
    whose PSNR is not a number are the worst of all.

    Of a whole video only the stretch about its worst frame is reconstructed again: what came
    long before hardly counts.
    """
    ranked = sorted(
        (-math.inf if math.isnan(psnr := clip.scores["network"]["psnr"]) else psnr, v, c)
        for v, (_, result) in enumerate(scored)
        for c, clip in enumerate(result.clips)
    )
    found = []
    for place, (_, v, c) in enumerate(ranked[:count]):
        video, result = scored[v]
        clip = result.clips[c]
        # Of frames that are not numbers, the first.
        worst = int(np.argmin(clip.per_frame["network"]["psnr"]))
        frames, index = frames_around(video, result, sampling, read, methods, c, worst)
        shown = [m for m in methods.all if m.key not in ("int8", "mean_colour")]
        pictures = stills(frames, index, shown, folder / f"clip_{place}")
        found.append(WorstClip(v, c, worst, pictures))
    return found


def stills(
    frames: Tensor, index: int, methods: Sequence[Method], stem: Path
) -> list[tuple[str, Path]]:
    """Write frame `index` of a clip, [1, T, 3, H, W], its reconstruction by each method, and the
    difference of the network's; what each shows, and its file."""
    original = picture_of(frames[:, index])
    pictures: list[tuple[str, Picture]] = [("original", original)]
    for method in methods:
        picture = picture_of(method.clip(frames)[:, index])
        pictures.append((method.label, picture))
        if method.key == "network":
            pictures.append((f"difference x{DIFFERENCE_GAIN}", difference(original, picture)))
    return write_pictures(pictures, stem)


def write_pictures(pictures: Sequence[tuple[str, Picture]], stem: Path) -> list[tuple[str, Path]]:
    """Write pictures to stem_0, stem_1 and so on; what each shows, and its file."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (label, picture) in enumerate(pictures):
        # Photographs in large, pixels in small.
        suffix = "png" if max(picture.shape) <= 320 else "jpg"
        file = stem.with_name(f"{stem.name}_{number}.{suffix}")
        image = Image.fromarray(picture)
        image.thumbnail((960, 960))
        image.save(file, quality=88)
        written.append((label, file))
    return written


def frames_around(
    video: HeldOutVideo,
    result: VideoResult,
    sampling: Sampling,
    read: VideoReader,
    methods: Methods,
    clip: int,
    frame: int,
) -> tuple[Tensor, int]:
    """Frames [1, T, 3, H, W] that hold frame `frame` of a clip, and where it is among them."""
    if not sampling.whole:
        found = read_clips(video, sampling, read)[1][clip]
        return frames_of(found, methods.device), frame
    # From the frames before it, as far as they decode.
    begin, length = result.clips[clip].first_frame, result.clips[clip].frames
    first = max(0, frame - sampling.data.num_frames + 1)
    last = min(length, first + sampling.data.num_frames)
    part = _part(video, result, begin + first, begin + last)
    streamed = stream_video(whole_request(part, sampling), [], read, methods.device)[1]
    frames = torch.stack([original for original, _ in streamed], dim=1)
    return frames, frame - first


def _part(video: HeldOutVideo, result: VideoResult, first: int, end: int) -> HeldOutVideo:
    """Frames [first, end) of the file alone."""
    count = result.facts.frames
    return replace(video, span=(first / count, end / count))


def _pairs(
    video: HeldOutVideo,
    result: VideoResult,
    sampling: Sampling,
    methods: Methods,
    read: VideoReader,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first clip's frames, the first `MOST_FRAMES` of a whole video, each with its
    reconstruction; [1, 3, H, W]."""
    network, device = methods.network, methods.device
    if sampling.whole:
        begin, length = result.clips[0].first_frame, min(result.clips[0].frames, MOST_FRAMES)
        part = _part(video, result, begin, begin + length)
        request = whole_request(part, sampling)
        for original, made in stream_video(request, [network], read, device)[1]:
            yield original, made[network.key]
        return
    frames = frames_of(read_clips(video, sampling, read)[1][0], device)
    yield from zip(frames.unbind(1), network.clip(frames).unbind(1), strict=True)
