"""Sample n of a set of videos as a clip: plan, decode, augment, and replace what is unusable."""

import logging
from dataclasses import dataclass

from data_pipeline.annotations import read_annotations
from data_pipeline.augment import Frames, make_clip
from data_pipeline.config import DataConfig
from data_pipeline.decode import UnusableVideoError, VideoFile, choose_window
from data_pipeline.errors import DataError
from data_pipeline.plan import ClipPlan, plan_clip
from data_pipeline.split import VideoSet, span_frames, split_videos

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 64
"""Videos that are tried for one sample: where so many in a row fail, the data set is at fault."""


@dataclass(frozen=True)
class Rejection:
    """A video that could not be used."""

    video: str
    """Path as in the annotation."""

    reason: str
    """What is wrong with it."""


@dataclass(frozen=True, eq=False)
class Clip:
    """One sample."""

    frames: Frames
    """uint8 [T, C, H, W] in [0, 255], C-contiguous."""

    sample: int
    """The global index that it was asked by."""

    video: str
    """Path, as in the annotation, of the video that it comes from."""

    rejected: tuple[Rejection, ...]
    """The videos that were tried before and could not be used."""


@dataclass(frozen=True, eq=False)
class ClipSource:
    """All that decides what sample n is."""

    videos: VideoSet
    """The videos that clips are cut from."""

    config: DataConfig
    """Shape and augmentation of the clips."""

    seed: int
    """Key of the order and of every random draw; not negative."""

    augment: bool
    """Random windows, crops and colours; False gives the fixed clips of validation."""


def open_sources(config: DataConfig, seed: int) -> tuple[ClipSource, ClipSource]:
    """The training source, augmented, and the validation source, not augmented.

    Raises DataError where the annotations cannot be read.
    """
    table = read_annotations(config.annotations, config.root)
    training, validation = split_videos(table, config.validation_fraction, seed)
    return (
        ClipSource(training, config, seed, augment=True),
        ClipSource(validation, config, seed, augment=False),
    )


def load_clip(source: ClipSource, sample: int) -> Clip:
    """Sample `sample` (0 or more), from the first video of its plan that can be used.

    Raises DataError where every video that was tried is unusable.
    """
    attempts = min(len(source.videos), MAX_ATTEMPTS)
    rejected: list[Rejection] = []
    for attempt in range(attempts):
        plan = plan_clip(
            source.seed, sample, len(source.videos), attempt, source.config, source.augment
        )
        video = source.videos.name(plan.video)
        try:
            frames = _read(source, plan)
        except UnusableVideoError as error:
            logger.debug("%s is unusable: %s", video, error)
            rejected.append(Rejection(video, str(error)))
            continue
        return Clip(frames, sample, video, tuple(rejected))

    examples = "".join(f"\n  {rejection.video}: {rejection.reason}" for rejection in rejected[:3])
    raise DataError(
        f"no clip can be made for sample {sample}: {attempts} of {attempts} videos tried are "
        f"unusable, for instance{examples}\n"
        f"check data.root (relative paths start at {source.videos.root}), and that the videos "
        f"are whole and have at least data.num_frames ({source.config.num_frames}) frames"
    )


def _read(source: ClipSource, plan: ClipPlan) -> Frames:
    config = source.config
    with VideoFile(source.videos.location(plan.video)) as video:
        span = span_frames(source.videos.span, video.num_frames)
        first, step = choose_window(span, plan.start, plan.step, config.num_frames)
        frames = video.frames([first + step * index for index in range(config.num_frames)])
        return make_clip(frames, plan, (config.height, config.width), video.pixel_aspect)
