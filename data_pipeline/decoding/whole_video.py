"""Every frame of a video, and the properties of its file.

This runs in the small child process too, so what `window` says of imports holds here.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from data_pipeline.crops import CropSize
from data_pipeline.decoding.augment import ClipMaker, Frames
from data_pipeline.decoding.media import BEST, open_video, translate_errors
from data_pipeline.decoding.video_file import VideoFile
from data_pipeline.decoding.window import span_frames
from data_pipeline.errors import UnusableVideoError
from data_pipeline.plan import CENTRE
from data_pipeline.videos.storage import open_media

PIECE_BYTES = 8 * 2**20
"""About the size of a piece of a video's frames."""


@dataclass(frozen=True)
class VideoFacts:
    """The properties of a video file."""

    frames: int
    height: int
    width: int
    """As displayed: upright, with square pixels."""
    fps: float
    bytes: int


@dataclass(frozen=True)
class WholeRequest:
    """A request for all frames of a video."""

    location: str
    """An absolute path or an S3 location."""

    multiple: int
    """Without `height` and `width`: a central crop whose H and W are multiples of this."""

    height: int = 0
    """With `width`: the largest central crop of that aspect ratio, scaled to it. 0: unscaled."""

    width: int = 0

    span: tuple[float, float] = (0.0, 1.0)
    """First and last point of the part of the file that is wanted, as fractions of its frames."""

    limit: int = 0
    """At most so many frames; 0: all."""

    stream: int = BEST
    """Which of the file's video streams."""

    deinterlace: bool = False
    """Whether interlaced frames are rebuilt."""


@dataclass(frozen=True)
class WholeVideo:
    """The frames that a request means, before any of them is decoded."""

    facts: VideoFacts
    first_frame: int
    """Of the file."""
    frames: int
    """T."""
    height: int
    width: int


def plan_whole(request: WholeRequest, facts: VideoFacts | None = None) -> WholeVideo:
    """Which frames a request means, and their size. Raises UnusableVideoError."""
    facts = facts or read_facts(request.location, request.stream)
    begin, end = span_frames(request.span, facts.frames)
    end = min(end, begin + request.limit) if request.limit else end
    shown = (facts.height, facts.width)
    wanted = (request.height, request.width)
    multiple = request.multiple
    height, width = wanted if all(wanted) else (side // multiple * multiple for side in shown)
    if end <= begin or min(height, width) < multiple:
        raise UnusableVideoError(
            f"has {max(end - begin, 0)} frames of {facts.height}x{facts.width} pixels: "
            f"at least one of {multiple}x{multiple} is needed"
        )
    return WholeVideo(facts, begin, end - begin, height, width)


def whole_frames(request: WholeRequest, video: WholeVideo) -> Iterator[Frames]:
    """The frames of `plan_whole(request)`, uint8 [n, C, H, W], in pieces.

    The video is decoded once, from its start. Raises UnusableVideoError.
    """
    facts, (height, width) = video.facts, (video.height, video.width)
    plan = CENTRE
    if not (request.height and request.width):
        # `crop_box` scales by the largest crop of the wanted aspect ratio.
        largest = min(facts.height, facts.width * height / width)
        plan = replace(CENTRE, crop=CropSize("part", min(1.0, height / largest)))
    length = max(1, PIECE_BYTES // (3 * height * width))
    with VideoFile(request.location, request.stream) as file:
        frames = file.walk(range(video.first_frame, video.first_frame + video.frames))
        for first in range(0, video.frames, length):
            piece = np.empty((min(length, video.frames - first), 3, height, width), np.uint8)
            maker = ClipMaker(plan, piece, file.pixel_aspect, request.deinterlace)
            for place in range(len(piece)):
                maker.put(place, next(frames))
            yield piece


def read_facts(location: str, stream: int = BEST) -> VideoFacts:
    """Size, rate and length. The first frame is decoded. Raises UnusableVideoError."""
    with translate_errors("cannot be opened"):
        media = open_media(location)
    try:
        container, chosen = open_video(media, stream)
        with translate_errors("cannot be decoded"), container:
            first = next(container.decode(chosen), None)
            if first is None:
                raise UnusableVideoError("has no frame")
            height, width = first.height, first.width
            width = round(width * float(chosen.sample_aspect_ratio or 1))
            if round(first.rotation / 90) % 2:
                height, width = width, height
            rate = chosen.average_rate or chosen.guessed_rate or Fraction(24)
    finally:
        if not isinstance(media, str):
            media.close()
    with VideoFile(location, stream) as video:
        frames = video.num_frames
    return VideoFacts(frames, height, width, float(rate), _size(location))


def _size(location: str) -> int:
    """Bytes of the file."""
    media = open_media(location)
    if isinstance(media, str):
        return Path(media).stat().st_size
    with media:
        return media.seek(0, io.SEEK_END)
