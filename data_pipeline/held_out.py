"""Videos as an evaluation reads them: which ones, and fixed clips of each."""

from dataclasses import dataclass

from data_pipeline.clips import Reader, Rejection
from data_pipeline.config import DataConfig
from data_pipeline.decoding.augment import Frames
from data_pipeline.decoding.whole_video import VideoFacts, read_facts
from data_pipeline.decoding.window import WindowRequest, place_clips
from data_pipeline.plan import CENTRE, visiting_order
from data_pipeline.videos.split import VideoSet
from data_pipeline.videos.storage import OutsideRootError


@dataclass(frozen=True)
class HeldOutVideo:
    """A video, and the part of it that may be looked at."""

    name: str
    """Path as in the annotation."""
    location: str
    """An absolute path or an S3 location."""
    span: tuple[float, float]
    """First and last point of that part, as fractions of the file's frames."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A fixed clip."""

    first_frame: int
    """Of the file."""
    frames: Frames
    """uint8 [T, C, H, W]."""


def choose_videos(
    videos: VideoSet, seed: int, limit: int
) -> tuple[list[HeldOutVideo], list[Rejection]]:
    """At most `limit` of them (0: all): the same ones for the same seed, drawn from the whole set.

    A larger limit adds videos and keeps those that were there. Of those that were drawn, the ones
    whose path leads out of the root come second.
    """
    count = min(limit or len(videos), len(videos))
    order = visiting_order(seed, 0, len(videos))
    chosen: list[HeldOutVideo] = []
    refused: list[Rejection] = []
    for index in map(order, range(count)):
        try:
            location = videos.location(index)
        except OutsideRootError as error:
            refused.append(Rejection(videos.name(index), str(error)))
        else:
            chosen.append(HeldOutVideo(videos.name(index), location, videos.span))
    return chosen, refused


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
    facts = read_facts(video.location, config.stream)
    places = [place_clips(request, facts.frames)[0][0] for request in requests]
    # A short video has fewer different clips than were asked for.
    distinct = dict(zip(places, frames, strict=True))
    return facts, [Clip(first, distinct[first]) for first in sorted(distinct)]


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
        stream=config.stream,
        deinterlace=config.deinterlace,
    )
