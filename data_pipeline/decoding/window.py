"""The clips of one window of a video: placed, decoded once, cropped, scaled and jittered.

This runs in the small child process: nothing that is imported here loads Ray, pandas or torch, or
PyArrow unless for a location on S3.
"""

from collections import defaultdict
from dataclasses import dataclass

import av
import numpy as np

from data_pipeline.decoding.augment import ClipMaker, Frames
from data_pipeline.decoding.media import BEST
from data_pipeline.decoding.video_file import VideoFile
from data_pipeline.errors import UnusableVideoError
from data_pipeline.plan import ClipPlan


@dataclass(frozen=True)
class WindowRequest:
    """A window of a video and the clips that are cut from it.

    Raises ValueError where a window could not hold a clip.
    """

    location: str
    """An absolute path or an S3 location."""

    span: tuple[float, float]
    """First and last point of the part of the file that may be used, as fractions of its frames."""

    start: float
    """Where the window starts, in [0, 1) of the starts that are possible."""

    window_frames: int
    """Frames of the window, where the span has as many; no fewer than `num_frames`."""

    clips: tuple[ClipPlan, ...]
    """N, at least one."""

    num_frames: int
    """T, frames of a clip, at least 1."""

    height: int
    """H, rows of a clip."""

    width: int
    """W, columns of a clip."""

    stream: int = BEST
    """Which of the file's video streams."""

    deinterlace: bool = False
    """Whether interlaced frames are rebuilt."""

    def __post_init__(self) -> None:
        """Check what the placing relies on."""
        if not 1 <= self.num_frames <= self.window_frames or not self.clips:
            raise ValueError(
                f"no window of {self.window_frames} frames holds "
                f"{len(self.clips)} clips of {self.num_frames} frames"
            )

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(N, T, C, H, W) of the clips."""
        return len(self.clips), self.num_frames, 3, self.height, self.width


@dataclass(frozen=True, eq=False)
class WindowClips:
    """The result of a request."""

    frames: Frames
    """uint8 [N, T, C, H, W] in [0, 255], C-contiguous: a clip for each plan of the request."""

    decoded: int
    """Frames that the decoder produced for them."""

    is_interlaced: bool = False
    """Whether some of them are of two half-pictures."""


def read_window(request: WindowRequest) -> WindowClips:
    """Decode a window and make its clips; only one decoded frame is in memory at a time.

    Raises UnusableVideoError if the video cannot give them.
    """
    with VideoFile(request.location, request.stream) as video:
        places = place_clips(request, video.num_frames)
        frames = np.empty(request.shape, np.uint8)
        makers = [
            ClipMaker(plan, clip, video.pixel_aspect, request.deinterlace)
            for plan, clip in zip(request.clips, frames, strict=True)
        ]
        uses: defaultdict[int, list[tuple[ClipMaker, int]]] = defaultdict(list)
        for maker, indices in zip(makers, places, strict=True):
            for place, index in enumerate(indices):
                uses[index].append((maker, place))

        def put(index: int, frame: av.VideoFrame) -> None:
            for maker, place in uses[index]:
                maker.put(place, frame)

        video.read(sorted(uses), put)
        for maker in makers:
            maker.finish()
        is_interlaced = any(maker.is_interlaced for maker in makers)
        return WindowClips(frames, video.decoded, is_interlaced)


def place_clips(request: WindowRequest, num_frames: int) -> list[range]:
    """The frames of each clip in a video of `num_frames` frames.

    A step that is too large for the window becomes the largest that fits.

    Raises UnusableVideoError if a clip does not fit even at step 1.
    """
    begin, end = span_frames(request.span, num_frames)
    available, gaps = end - begin, request.num_frames - 1
    if available < request.num_frames:
        raise UnusableVideoError(
            f"too short: has {available} frames, a clip needs {request.num_frames} frames at step 1"
        )
    length = min(request.window_frames, available)
    begin += int(request.start * (available - length + 1))
    places = []
    for clip in request.clips:
        step = min(clip.step, (length - 1) // gaps) if gaps else 1
        first = begin + int(clip.offset * (length - gaps * step))
        places.append(range(first, first + gaps * step + 1, step))
    return places


def span_frames(span: tuple[float, float], num_frames: int) -> tuple[int, int]:
    """The frames [first, end) of a span in a file of `num_frames` frames.

    Adjacent spans share no frame whatever the count, since both round the same product.
    """
    first, end = (round(fraction * num_frames) for fraction in span)
    return first, end
