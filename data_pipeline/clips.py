"""The clips of a window: plan, decode, augment, and replace what is unusable."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from data_pipeline.config import DataConfig
from data_pipeline.decoding.augment import Frames
from data_pipeline.decoding.window import WindowClips, WindowRequest
from data_pipeline.errors import DataError, MomentaryError, UnusableVideoError
from data_pipeline.plan import Place, SampleOrder, WindowKey
from data_pipeline.videos.split import VideoSet, open_videos
from data_pipeline.videos.storage import OutsideRootError

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 64
"""Videos that are tried for one window: where so many in a row fail, the data set is at fault."""

Reader = Callable[[WindowRequest], WindowClips]
"""`window.read_window`, or a `guard.WindowReader` that outlives what a broken file does to it."""

Verdict = tuple[int, ...]
"""A time-out or the like, as (epoch, position, attempt): that attempt is not made again.

All other verdicts on a video come out the same whenever they are reached; this one depends on the
moment, so a checkpoint keeps it.
"""


@dataclass(frozen=True)
class Rejection:
    """A video that could not be used."""

    video: str
    """Path as in the annotation."""

    reason: str
    """What is wrong with it."""


@dataclass(frozen=True, eq=False)
class ClipSource:
    """All that decides what sample n is."""

    videos: VideoSet
    """The videos that clips are cut from."""

    order: SampleOrder
    """What each sample is."""

    verdicts: Collection[Verdict] = frozenset()
    """Those that a run had come to before it was interrupted."""

    @property
    def config(self) -> DataConfig:
        return self.order.config


@dataclass(frozen=True)
class WindowTask:
    """A window to decode, and those of its clips that are wanted."""

    key: WindowKey
    clips: tuple[int, ...]
    samples: tuple[int, ...]
    """The sample that each clip is."""


@dataclass(frozen=True, eq=False)
class Window:
    """The clips of a task."""

    samples: tuple[int, ...]
    frames: Frames
    """uint8 [clips, T, C, H, W] in [0, 255], C-contiguous."""

    video: str
    """Path, as in the annotation, of the video that they come from."""

    decoded: int
    """Frames that were decoded for them."""

    rejected: tuple[Rejection, ...]
    """The videos that were tried before and could not be used."""

    verdicts: tuple[Verdict, ...]
    """The attempts that failed for reasons of the moment, now or in an earlier life of the run."""


def open_sources(config: DataConfig, seed: int, batch: int) -> tuple[ClipSource, ClipSource]:
    """The training source, augmented, and the validation source, not augmented.

    `batch` is the number of samples of a training step over all workers.

    Raises DataError where the annotations cannot be read.
    """
    split_seed = config.split_seed if config.split_seed >= 0 else seed
    training, validation = open_videos(
        config.annotations, config.root, config.validation_fraction, split_seed
    )
    return (
        ClipSource(training, SampleOrder(seed, len(training), batch, config, augment=True)),
        ClipSource(
            validation, SampleOrder(split_seed, len(validation), batch, config, augment=False)
        ),
    )


def load_window(source: ClipSource, task: WindowTask, read: Reader) -> Window:
    """The clips of a window, from the first video of its plan that can be used.

    Raises DataError where every video that was tried is unusable.
    """
    attempts = min(len(source.videos), MAX_ATTEMPTS)
    rejected: list[Rejection] = []
    verdicts: list[Verdict] = []
    for attempt in range(attempts):
        video_index = source.order.window(task.key, attempt).video
        video = source.videos.name(video_index)
        verdict = (*task.key, attempt)
        try:
            if verdict in source.verdicts:
                raise MomentaryError("could not be used before this run was interrupted")
            clips = read(_request(source, task, attempt))
        except (UnusableVideoError, OutsideRootError) as error:
            logger.debug("%s is unusable: %s", video, error)
            rejected.append(Rejection(video, str(error)))
            if isinstance(error, MomentaryError):
                verdicts.append(verdict)
            continue
        return Window(
            task.samples, clips.frames, video, clips.decoded, tuple(rejected), tuple(verdicts)
        )

    examples = "".join(f"\n  {rejection.video}: {rejection.reason}" for rejection in rejected[:3])
    raise DataError(
        f"no clip can be made for sample {task.samples[0]}: {attempts} of {attempts} videos tried "
        f"are unusable, for instance{examples}\n"
        f"check data.root (relative paths start at {source.videos.root}), and that the videos "
        f"are whole and have at least data.num_frames ({source.config.num_frames}) frames"
    )


def _request(source: ClipSource, task: WindowTask, attempt: int) -> WindowRequest:
    order, config = source.order, source.config
    plan = order.window(task.key, attempt)
    return WindowRequest(
        location=source.videos.location(plan.video),
        span=source.videos.span,
        start=plan.start,
        window_frames=order.window_frames,
        clips=tuple(order.clip(Place(task.key, clip), attempt) for clip in task.clips),
        num_frames=config.num_frames,
        height=config.height,
        width=config.width,
    )
