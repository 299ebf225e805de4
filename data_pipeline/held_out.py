"""Videos as an evaluation reads them: fixed clips of each, or every frame in its own size."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data_pipeline.augment import ClipMaker, Frames
from data_pipeline.clips import Reader
from data_pipeline.config import DataConfig
from data_pipeline.decode import VideoFile
from data_pipeline.errors import UnusableVideoError
from data_pipeline.media import open_video, verdict
from data_pipeline.plan import CENTRE, ClipPlan, visiting_order
from data_pipeline.split import VideoSet
from data_pipeline.storage import OutsideRootError, open_media
from data_pipeline.window import WindowRequest, place_clips, span_frames

CHUNK_FRAMES = 16
"""Frames of a whole video that are decoded at a time."""


@dataclass(frozen=True)
class HeldOutVideo:
    """A video, and the part of it that may be looked at."""

    name: str
    """Path as in the annotation."""
    location: str
    """An absolute path or an S3 location."""
    span: tuple[float, float]
    """First and last point of that part, as fractions of the file's frames."""


@dataclass(frozen=True)
class VideoFacts:
    """What a file says of itself."""

    frames: int
    height: int
    width: int
    """As shown: turned upright, with square pixels."""
    fps: float
    bytes: int


@dataclass(frozen=True, eq=False)
class Clip:
    """A fixed clip."""

    first_frame: int
    """Of the file."""
    frames: Frames
    """uint8 [T, C, H, W]."""


def choose_videos(videos: VideoSet, seed: int, limit: int) -> list[HeldOutVideo]:
    """At most `limit` of them (0: all): the same ones for the same seed, drawn from the whole set.

    A larger limit adds videos and keeps those that were there.
    Raises OutsideRootError where a path leads out of the root.
    """
    count = min(limit or len(videos), len(videos))
    order = visiting_order(seed, 0, len(videos))
    chosen = [order(position) for position in range(count)]
    return [HeldOutVideo(videos.name(i), videos.location(i), videos.span) for i in chosen]


def fixed_clips(
    video: HeldOutVideo, config: DataConfig, clips: int, read: Reader
) -> tuple[VideoFacts, list[Clip]]:
    """Clips that begin at even distances, one behind the other where there is room for it.

    As in validation: the largest crop in the middle, scaled, at frame step 1.
    read: `window.read_window`, or a `WindowReader` that outlives what a broken file does to it.
    Raises UnusableVideoError where the video cannot give one.
    """
    requests = [_request(video, config, (k + 0.5) / clips) for k in range(clips)]
    frames = [read(request).frames[0] for request in requests]
    # In this process, and so after the guarded reads, which a file that hangs does not pass.
    facts = look_at(video.location)
    places = [place_clips(request, facts.frames)[0][0] for request in requests]
    # A short video has fewer different clips than were asked for.
    distinct = dict(zip(places, frames, strict=True))
    return facts, [Clip(first, distinct[first]) for first in sorted(distinct)]


def whole_frames(
    video: HeldOutVideo, facts: VideoFacts, multiple: int, limit: int = 0
) -> tuple[tuple[int, int, int], Iterator[Frames]]:
    """(T, H, W), and T frames as uint8 [n, C, H, W] pieces: all of them, not scaled.

    H and W are cut, about the middle, to multiples of `multiple`. Of a lone video that is shared
    with training, it is the held-out part. limit: at most so many frames; 0: all.
    Raises UnusableVideoError.
    """
    begin, end = span_frames(video.span, facts.frames)
    end = min(end, begin + limit) if limit else end
    height, width = (side // multiple * multiple for side in (facts.height, facts.width))
    if end <= begin or min(height, width) < multiple:
        raise UnusableVideoError(
            f"has {max(end - begin, 0)} frames of {facts.height}x{facts.width} pixels: "
            f"at least one of {multiple}x{multiple} is needed"
        )
    # `crop_box` takes a part of the largest crop of the wanted shape; this part is all its size.
    largest = min(facts.height, facts.width * height / width)
    plan = replace(CENTRE, crop_scale=min(1.0, height / largest))
    return (end - begin, height, width), _pieces(video, plan, range(begin, end), (height, width))


def look_at(location: str) -> VideoFacts:
    """Size, rate and length. The first frame is decoded. Raises UnusableVideoError."""
    with verdict("cannot be opened"):
        media = open_media(location)
    try:
        container, stream = open_video(media)
        with verdict("cannot be decoded"), container:
            first = next(container.decode(stream), None)
            if first is None:
                raise UnusableVideoError("has no frame")
            height, width = first.height, first.width
            width = round(width * float(stream.sample_aspect_ratio or 1))
            if round(first.rotation / 90) % 2:
                height, width = width, height
            rate = stream.average_rate or stream.guessed_rate or Fraction(24)
    finally:
        if not isinstance(media, str):
            media.close()
    with VideoFile(location) as video:
        frames = video.num_frames
    return VideoFacts(frames, height, width, float(rate), _size(location))


def _size(location: str) -> int:
    """Bytes of the file."""
    media = open_media(location)
    if isinstance(media, str):
        return Path(media).stat().st_size
    with media:
        return media.seek(0, io.SEEK_END)


def _request(video: HeldOutVideo, config: DataConfig, start: float) -> WindowRequest:
    return WindowRequest(
        location=video.location,
        span=video.span,
        start=start,
        window_frames=config.num_frames,
        clips=(CENTRE,),
        num_frames=config.num_frames,
        height=config.height,
        width=config.width,
    )


def _pieces(
    video: HeldOutVideo, plan: ClipPlan, frames: range, size: tuple[int, int]
) -> Iterator[Frames]:
    with VideoFile(video.location) as file:
        for first in range(frames.start, frames.stop, CHUNK_FRAMES):
            indices = range(first, min(first + CHUNK_FRAMES, frames.stop))
            piece = np.empty((len(indices), 3, *size), np.uint8)
            maker = ClipMaker(plan, piece, file.pixel_aspect)

            def put(
                index: int, frame: av.VideoFrame, *, to: ClipMaker = maker, begin: int = first
            ) -> None:
                to.put(index - begin, frame)

            file.read(indices, put)
            yield piece


__all__ = [
    "Clip",
    "HeldOutVideo",
    "OutsideRootError",
    "VideoFacts",
    "choose_videos",
    "fixed_clips",
    "look_at",
    "whole_frames",
]
