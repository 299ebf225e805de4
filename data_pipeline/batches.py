"""Batches of clips: which windows they need, their assembly, and a plain sequential way to make
them in this process."""

import logging
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from data_pipeline.clips import (
    ClipSource,
    Rejection,
    TransientFailure,
    Window,
    WindowTask,
    load_window,
)
from data_pipeline.config import DataConfig
from data_pipeline.decoding.sandbox import WindowReader
from data_pipeline.plan import SampleOrder, WindowKey

logger = logging.getLogger(__name__)

SURPLUS = -1
"""In place of a sample index: the slot pads a batch that the workers do not divide."""

Samples = NDArray[np.int64]


class RejectedVideo(TypedDict):
    """A video that could not be used; one line of the quarantine."""

    video: str
    """Path as in the annotation."""

    reason: str
    """What is wrong with it."""


class Batch(TypedDict):
    """The clips of one worker for one training step."""

    frames: NDArray[np.uint8]
    """[N, T, C, H, W] in [0, 255], C-contiguous; zeros in surplus slots."""

    sample: Samples
    """[N], the global index of each clip; -1 in surplus slots."""

    video: list[str]
    """The path of each clip's video as in the annotation; empty in surplus slots."""

    rejected: list[RejectedVideo]
    """The videos that were tried for this batch's clips and could not be used."""

    transient_failures: list[TransientFailure]
    """Those among the attempts that preceded this batch's clips."""

    decoded: int
    """Frames decoded for the windows that this batch is the first to use."""


class Step(NamedTuple):
    """A training step of one worker."""

    samples: Samples
    tasks: list[WindowTask]
    """The windows that this step is the first to use, in the order of use."""


def plan_steps(schedule: Iterator[Samples], order: SampleOrder) -> Iterator[Step]:
    """The steps of a schedule, each window with all of its clips that the schedule asks for.

    Since several steps use the clips of a window, the schedule's indices are read ahead by the
    length of two groups of windows.

    Raises ValueError if two steps differ in their number of samples.
    """
    group_steps = -(-order.group_windows * order.clips_per_window // order.batch)
    # The last group of an epoch may be nearly twice as long as the others.
    horizon = 2 * group_steps + 1 if order.clips_per_window > 1 else 1
    ahead: deque[Samples] = deque()
    wanted: dict[WindowKey, list[tuple[int, int]]] = {}

    def read_ahead(steps: int) -> None:
        for samples in islice(schedule, steps):
            if len(samples) == 0 or (ahead and len(samples) != len(ahead[0])):
                raise ValueError("every step of a schedule must ask for the same number of samples")
            for sample in samples.tolist():
                if sample != SURPLUS:
                    place = order.locate(sample)
                    wanted.setdefault(place.window, []).append((place.clip, sample))
            ahead.append(samples)

    read_ahead(horizon)
    while ahead:
        tasks = []
        for sample in ahead[0].tolist():
            if sample == SURPLUS:
                continue
            key = order.locate(sample).window
            if key in wanted:
                clips, samples = zip(*wanted.pop(key), strict=True)
                tasks.append(WindowTask(key, clips, samples))
        yield Step(ahead[0], tasks)
        read_ahead(1)
        ahead.popleft()


class BatchAssembler:
    """Holds decoded clips until their step's batch is taken."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._waiting: dict[int, tuple[Window, int]] = {}
        self._decoded = 0
        self._rejected: list[Rejection] = []
        self._warns_of_interlacing = not config.deinterlace

    def add(self, window: Window) -> None:
        """Add the clips of a window. The first of an interlaced video is told."""
        if window.is_interlaced and self._warns_of_interlacing:
            self._warns_of_interlacing = False
            logger.warning(
                "%s is interlaced: its frames are of two half-pictures, whose combs are taken for "
                "detail; --data.deinterlace rebuilds whole frames (others are not named)",
                window.video,
            )
        for index, sample in enumerate(window.samples):
            self._waiting[sample] = (window, index)
        self._decoded += window.decoded
        self._rejected += window.rejected

    def lacks(self, samples: Samples) -> bool:
        """Whether a step needs further windows."""
        return any(s != SURPLUS and s not in self._waiting for s in samples.tolist())

    def take(self, samples: Samples) -> Batch:
        """The batch of a step; its clips are released."""
        config = self._config
        shape = (len(samples), config.num_frames, 3, config.height, config.width)
        frames = np.zeros(shape, np.uint8)
        videos = [""] * len(samples)
        failures: list[TransientFailure] = []
        for slot, sample in enumerate(samples.tolist()):
            if sample == SURPLUS:
                continue
            window, index = self._waiting.pop(sample)
            frames[slot] = window.frames[index]
            videos[slot] = window.video
            failures += window.transient_failures
        rejected = [RejectedVideo(video=r.video, reason=r.reason) for r in self._rejected]
        batch = Batch(
            frames=frames,
            sample=samples.astype(np.int64),
            video=videos,
            rejected=rejected,
            transient_failures=failures,
            decoded=self._decoded,
        )
        self._decoded, self._rejected = 0, []
        return batch


def iter_batches(source: ClipSource, schedule: Iterator[Samples]) -> Iterator[Batch]:
    """A batch per entry of `schedule`: the samples, int64 [N], that a step needs.

    The same batches as `streaming.stream_batches`, with no Ray and no parallelism.

    Raises DataError if none of the videos that were tried can give a clip.
    """
    assembler = BatchAssembler(source.config)
    with WindowReader() as reader:
        read = partial(reader.read, seconds=source.config.decode_seconds)
        for step in plan_steps(schedule, source.order):
            for task in step.tasks:
                assembler.add(load_window(source, task, read))
            yield assembler.take(step.samples)
