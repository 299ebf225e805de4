"""Videos as an evaluation reads them: which ones, and fixed clips of each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from data_pipeline.clips import Reader, Rejection
from data_pipeline.config import DataConfig
from data_pipeline.crops import NATIVE, crop_box, drawn
from data_pipeline.decoding.augment import Frames
from data_pipeline.decoding.whole_video import VideoFacts
from data_pipeline.decoding.window import WindowRequest, place_clips, span_frames
from data_pipeline.errors import UnusableVideoError
from data_pipeline.plan import CENTRE, GOLDEN_RATIO, ClipPlan, even_place, visiting_order
from data_pipeline.videos.split import VideoSet
from data_pipeline.videos.storage import OutsideRootError

SMALLEST_SIDE = 16
"""Pixels of a clip: fewer cannot be scored."""


@dataclass(frozen=True)
class HeldOutVideo:
    """A video, and the part of it that may be looked at."""

    name: str
    """Path as in the annotation."""
    location: str
    """An absolute path or an S3 location."""
    span: tuple[float, float]
    """First and last point of that part, as fractions of the file's frames."""
    number: int
    """Of those that were drawn; by it the windows of different videos lie at different places."""


@dataclass(frozen=True)
class ClipSize:
    """What is cut from a video."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Clip:
    """A fixed clip."""

    first_frame: int
    """Of the file."""
    place: tuple[int, int]
    """Left and top of its crop in the upright frame, pixels."""
    frames: Frames
    """uint8 [T, C, H, W]."""


def choose_videos(
    videos: VideoSet, seed: int, limit: int, first: int = 0, others: Iterable[HeldOutVideo] = ()
) -> tuple[list[HeldOutVideo], list[Rejection]]:
    """At most `limit` of them (0: all): the same ones for the same seed, drawn from the whole set.

    A larger limit adds videos and keeps those that were there. Of those that were drawn, the ones
    whose path leads out of the root come second. A file that is listed several times is one video.
    first: number of the first of them. others: videos that are not drawn again.
    """
    order = visiting_order(seed, 0, len(videos))
    chosen: list[HeldOutVideo] = []
    refused: list[Rejection] = []
    seen = {video.location for video in others}
    for place in range(len(videos)):
        drawn_so_far = len(chosen) + len(refused)
        if limit and drawn_so_far == limit:
            break
        index = order(place)
        try:
            location = videos.location(index)
        except OutsideRootError as error:
            refused.append(Rejection(videos.name(index), str(error)))
        else:
            if location in seen:
                continue
            seen.add(location)
            name, number = videos.name(index), first + drawn_so_far
            chosen.append(HeldOutVideo(name, location, videos.span, number))
    return chosen, refused


def native_windows(
    video: HeldOutVideo,
    facts: VideoFacts,
    largest: ClipSize,
    multiple: int,
    config: DataConfig,
    clips: int,
    read: Reader,
) -> list[Clip]:
    """Windows of the video's own pixels, at even distances in time and spread over the frame.

    largest: their size, cut down to what the video has: height and width to a multiple of
    `multiple`, the frames to no fewer than a clip of the configuration has.
    read: `window.read_window`, or a `WindowReader` that outlives what a broken file does to it.
    Raises UnusableVideoError where the video cannot give one.
    """
    first, end = span_frames(video.span, facts.frames)
    fewest = min(config.num_frames, largest.frames)
    height, width = (
        min(wanted, there) // multiple * multiple
        for wanted, there in ((largest.height, facts.height), (largest.width, facts.width))
    )
    if min(height, width) < SMALLEST_SIDE:
        raise UnusableVideoError(
            f"has frames of {facts.height}x{facts.width} pixels: a window needs {SMALLEST_SIDE} a "
            f"side, and a multiple of {multiple}"
        )
    size = ClipSize(max(fewest, min(largest.frames, end - first)), height, width)
    plans = [replace(plan, crop=NATIVE) for plan in _spread_plans(video, clips)]
    return _read_clips(video, facts, size, config, plans, read)


def shrunk_clips(
    video: HeldOutVideo, facts: VideoFacts, config: DataConfig, clips: int, read: Reader
) -> list[Clip]:
    """Clips of the configuration's size, each the largest crop in the middle, scaled, at even
    distances in time, one behind the other where there is room for it. As `native_windows`."""
    size = ClipSize(config.num_frames, config.height, config.width)
    return _read_clips(video, facts, size, config, [CENTRE] * clips, read)


def trained_clips(
    video: HeldOutVideo, facts: VideoFacts, config: DataConfig, clips: int, read: Reader
) -> list[Clip]:
    """Clips as the configuration trains on them, of every size of crop that it draws, but neither
    mirrored nor with other colours. As `native_windows`."""
    size = ClipSize(config.num_frames, config.height, config.width)
    numbers = range(video.number * clips, (video.number + 1) * clips)
    plans = [
        replace(plan, crop=drawn(config.crops, (number + 0.5) * GOLDEN_RATIO % 1.0))
        for number, plan in zip(numbers, _spread_plans(video, clips), strict=True)
    ]
    return _read_clips(video, facts, size, config, plans, read)


def _spread_plans(video: HeldOutVideo, clips: int) -> list[ClipPlan]:
    """Crops at places that fill the frame evenly over all clips of all videos."""
    places = [even_place(video.number * clips + k) for k in range(clips)]
    return [replace(CENTRE, crop_x=across, crop_y=down) for across, down in places]


def _read_clips(
    video: HeldOutVideo,
    facts: VideoFacts,
    size: ClipSize,
    config: DataConfig,
    plans: Sequence[ClipPlan],
    read: Reader,
) -> list[Clip]:
    """A clip for each plan, by time; a short video has fewer different ones."""
    found: dict[tuple[int, tuple[int, int]], Clip] = {}
    for k, plan in enumerate(plans):
        request = WindowRequest(
            location=video.location,
            span=video.span,
            start=(k + 0.5) / len(plans),
            window_frames=size.frames,
            clips=(plan,),
            num_frames=size.frames,
            height=size.height,
            width=size.width,
            stream=config.stream,
            deinterlace=config.deinterlace,
        )
        first = place_clips(request, facts.frames)[0][0]
        shown, clip = (facts.height, facts.width), (size.height, size.width)
        box = crop_box(shown, clip, plan.crop, (plan.crop_x, plan.crop_y), 1.0)
        key = first, (box.x, box.y)
        if key not in found:
            found[key] = Clip(*key, read(request).frames[0])
    return [found[key] for key in sorted(found)]
