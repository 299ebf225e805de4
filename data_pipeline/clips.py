"""The clips of a window: plan, decode, augment, and replace unusable videos."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from data_pipeline.config import DataConfig
from data_pipeline.decoding.augment import Frames
from data_pipeline.decoding.window import WindowClips, WindowRequest
from data_pipeline.errors import DataError, TransientVideoError, UnusableVideoError
from data_pipeline.plan import Place, SampleOrder, WindowKey
from data_pipeline.videos.split import VideoSet, open_videos
from data_pipeline.videos.storage import OutsideRootError

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 64
"""Videos that are tried for one window before the data set as a whole is called unusable."""

Reader = Callable[[WindowRequest], WindowClips]
"""`window.read_window`, or `sandbox.WindowReader.read`, which a broken file cannot crash."""

TransientFailure = tuple[int, ...]
"""An attempt at a video that raised `TransientVideoError`, as (epoch, position, attempt).

Other failures recur whenever the video is read; this one may not, so a checkpoint keeps it, and a
resumed run skips the attempt.
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
    """Everything that determines which clip sample n is."""

    videos: VideoSet
    """The videos that clips are cut from."""

    order: SampleOrder
    """Which video, window and crop each sample is."""

    transient_failures: Collection[TransientFailure] = frozenset()
    """Those of the run before it was resumed."""

    @property
    def config(self) -> DataConfig:
        return self.order.config


@dataclass(frozen=True)
class WindowTask:
    """A window to decode, and which of its clips to make."""

    key: WindowKey
    clips: tuple[int, ...]
    samples: tuple[int, ...]
    """The sample index of each clip."""


@dataclass(frozen=True, eq=False)
class Window:
    """The clips of a task."""

    samples: tuple[int, ...]
    frames: Frames
    """uint8 [clips, T, C, H, W] in [0, 255], C-contiguous."""

    video: str
    """Path of the clips' video, as in the annotation."""

    decoded: int
    """Frames that were decoded for the clips."""

    is_interlaced: bool
    """Whether the video's frames are of two half-pictures."""

    rejected: tuple[Rejection, ...]
    """The videos that were tried first and could not be used."""

    transient_failures: tuple[TransientFailure, ...]
    """The transient failures among them, now or before a resume."""


def open_sources(config: DataConfig, seed: int, batch: int) -> tuple[ClipSource, ClipSource]:
    """The training source, augmented, and the validation source, not augmented.

    `batch` is the number of samples of a training step over all workers.

    Raises DataError where the annotations cannot be read.
    """
    split_seed = config.split_seed if config.split_seed >= 0 else seed
    training, validation = open_videos(
        config.annotations,
        config.root,
        config.validation_fraction,
        split_seed,
        config.split_by,
        config.validation_annotations,
    )
    return (
        ClipSource(training, SampleOrder(seed, len(training), batch, config, augment=True)),
        ClipSource(
            validation,
            SampleOrder(split_seed, len(validation), batch, config.of_validation(), augment=False),
        ),
    )


def load_window(source: ClipSource, task: WindowTask, read: Reader) -> Window:
    """The clips of a window, from the first usable video of its plan.

    Raises DataError if every video that was tried is unusable.
    """
    attempts = min(len(source.videos), MAX_ATTEMPTS)
    rejected: list[Rejection] = []
    failures: list[TransientFailure] = []
    for attempt in range(attempts):
        video_index = source.order.window(task.key, attempt).video
        video = source.videos.name(video_index)
        failure = (*task.key, attempt)
        try:
            if failure in source.transient_failures:
                raise TransientVideoError("could not be used before this run was interrupted")
            clips = read(_request(source, task, attempt))
        except (UnusableVideoError, OutsideRootError) as error:
            logger.debug("%s is unusable: %s", video, error)
            rejected.append(Rejection(video, str(error)))
            if isinstance(error, TransientVideoError):
                failures.append(failure)
            continue
        return Window(
            task.samples,
            clips.frames,
            video,
            clips.decoded,
            clips.is_interlaced,
            tuple(rejected),
            tuple(failures),
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
        stream=config.stream,
        deinterlace=config.deinterlace,
    )
