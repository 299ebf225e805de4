"""Every frame of a video, damaged or not, and the properties of its file.

This runs in the small child process too, so what `window` says of imports holds here.
"""

import io
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_pipeline.crops import CropSize
from data_pipeline.decoding.augment import ClipMaker, Frames
from data_pipeline.decoding.damage import LostFrames, LostFramesError
from data_pipeline.decoding.media import BEST
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
    """Sound or not."""
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


def kept_frames(request: WholeRequest, video: WholeVideo) -> Generator[Frames | LostFrames]:
    """The frames of `plan_whole(request)`, uint8 [n, C, H, W], in pieces; in place of those that
    cannot be decoded, what is lost.

    The video is decoded once, from its start. Raises UnusableVideoError, also where all is lost.
    """
    facts, (height, width) = video.facts, (video.height, video.width)
    plan = CENTRE
    if not (request.height and request.width):
        # `crop_box` scales by the largest crop of the wanted aspect ratio.
        largest = min(facts.height, facts.width * height / width)
        plan = replace(CENTRE, crop=CropSize("part", min(1.0, height / largest)))
    length = max(1, PIECE_BYTES // (3 * height * width))
    frames = range(video.first_frame, video.first_frame + video.frames)
    with VideoFile(request.location, request.stream) as file:
        piece, filled = np.empty((0, 3, height, width), np.uint8), 0
        for item in file.walk(frames):
            is_lost = isinstance(item, LostFrames)
            if filled and (is_lost or filled == len(piece)):
                yield piece[:filled]
                filled = 0
            if isinstance(item, LostFrames):
                if (item.first, item.end) == (frames.start, frames.stop):
                    raise UnusableVideoError(f"cannot be decoded: {item.reason}")
                yield item
                continue
            index, frame = item
            if not filled:
                piece = np.empty((min(length, frames.stop - index), 3, height, width), np.uint8)
                maker = ClipMaker(plan, piece, file.pixel_aspect, request.deinterlace)
            maker.put(filled, frame)
            filled += 1
        if filled:
            yield piece[:filled]


def read_facts(location: str, stream: int = BEST) -> VideoFacts:
    """Size, rate and length. The first frame that can be is decoded. Raises UnusableVideoError."""
    with VideoFile(location, stream) as video:
        # Counted first: a header's timeline is checked at the start of the file.
        frames = video.frames_to_walk
        first = video.first_frame()
        height, width = first.height, round(first.width * video.pixel_aspect)
        if round(first.rotation / 90) % 2:
            height, width = width, height
        return VideoFacts(frames, height, width, video.rate, _size(location))


@dataclass
class Stretch:
    """Frames of a video that follow each other, without a gap."""

    first_frame: int
    """Of the file."""
    pieces: Iterator[Frames]
    """uint8 [n, C, H, W] each; to be read before the next stretch is asked for."""


def stretches(
    video: WholeVideo, items: Iterator[Frames | LostFrames], lost: list[LostFrames]
) -> Iterator[Stretch]:
    """The stretches of `kept_frames`; what is lost between them is added to `lost`."""
    index, item = video.first_frame, next(items, None)

    def pieces() -> Iterator[Frames]:
        nonlocal index, item
        while item is not None and not isinstance(item, LostFrames):
            index += len(item)
            yield item
            item = next(items, None)

    while item is not None:
        if isinstance(item, LostFrames):
            lost.append(item)
            index, item = item.end, next(items, None)
            continue
        stretch = pieces()
        yield Stretch(index, stretch)
        # What of it was left unread.
        deque(stretch, maxlen=0)


def whole_frames(request: WholeRequest, video: WholeVideo) -> Generator[Frames]:
    """The frames of `plan_whole(request)`, uint8 [n, C, H, W], in pieces. Raises LostFramesError
    where one cannot be decoded."""
    return without_gaps(kept_frames(request, video))


def without_gaps(items: Generator[Frames | LostFrames]) -> Generator[Frames]:
    """The pieces of `kept_frames`. Raises LostFramesError where frames are lost."""
    with closing(items):
        for item in items:
            if isinstance(item, LostFrames):
                raise LostFramesError(str(item))
            yield item


def _size(location: str) -> int:
    """Bytes of the file."""
    media = open_media(location)
    if isinstance(media, str):
        return Path(media).stat().st_size
    with media:
        return media.seek(0, io.SEEK_END)
