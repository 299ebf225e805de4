"""The data set: its list, how fast videos are read, and what a decoded clip costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from data_pipeline.batches import plan_steps
from data_pipeline.clips import ClipSource, WindowTask, load_window, open_sources
from data_pipeline.decoding.sandbox import WindowReader
from data_pipeline.errors import DataError
from data_pipeline.videos import storage
from data_pipeline.videos.storage import OutsideRootError
from jobs.cli.config import Config
from jobs.diagnosis.finding import Finding, Level, failure, ok, skipped, warning
from jobs.diagnosis.nodes import NoAnswerError, Node, call_on
from jobs.diagnosis.plain_errors import plain_error

LIST, READING, DECODING = "data list", "reading", "decoding"

VIDEOS = 4
VIDEO_BYTES = 32 * 2**20
READ_SECONDS = 20.0
"""After it no further video is read, so that a slow store does not hold up the rest."""

MIN_TIMED_BYTES = 4 * 2**20
"""With less, what was measured is the time to open a file."""

WINDOWS = 4
DECODE_SECONDS = 60.0

SAMPLE_SECONDS = 300.0
"""For reading and decoding, on a node that may have to read a long list first."""

SLOW_BYTES_PER_SECOND = 10e6
"""A clip's window of dashcam video is about a megabyte; a GPU wants tens a second."""


@dataclass(frozen=True)
class VideoList:
    """The list as the driver read it."""

    annotations: str
    videos: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Sample:
    """A few videos as one process read and decoded them."""

    where: str
    bytes_read: int = 0
    read_seconds: float = 0.0
    videos_read: int = 0
    unreadable: tuple[str, ...] = ()
    """Videos that could not be opened or read, each with its reason."""
    clips: int = 0
    decode_seconds: float = 0.0
    """Of one process, for those clips, reading included."""
    unusable: tuple[str, ...] = ()
    """Videos that could not be decoded, each with its reason."""
    error: str = ""
    """What kept everything else from being measured."""

    @property
    def clips_per_second(self) -> float:
        """Of one decoding task; 0: not measured."""
        return self.clips / self.decode_seconds if self.decode_seconds else 0.0


def read_list(config: Config) -> tuple[ClipSource | None, VideoList]:
    """The training videos, and what reading their list came to."""
    # The longest clips may be longer than a video is.
    config = config.largest_stage()
    annotations, train = config.data.annotations, config.train
    begun = time.perf_counter()
    try:
        training, validation = open_sources(config.data, train.seed, train.global_batch_size)
    except (DataError, OSError) as error:
        return None, VideoList(annotations, error=str(error))
    count = len(training.videos) + len(validation.videos)
    return training, VideoList(annotations, count, time.perf_counter() - begun)


def look_at_sample(config: Config, source: ClipSource, nodes: Sequence[Node]) -> Sample:
    """Read and decode on a node that would do so in a run; without one, here."""
    cpus, label = config.data.decode_cpus, config.data.decode_nodes
    able = [node for node in nodes if node.cpus >= cpus]
    labelled = [node for node in able if label and node.has(label)]
    chosen = next(iter(labelled or able), None)
    if chosen is None:
        return take_sample(source, "the driver, since no node is there")
    where = f"{chosen.name}{' (the driver)' if chosen.is_own else ''}"
    try:
        sample: Sample = call_on(chosen, SAMPLE_SECONDS, take_sample, source, where, cpus=cpus)
    except NoAnswerError as error:
        return Sample(where, error=str(error))
    return sample


def take_sample(source: ClipSource, where: str) -> Sample:
    """Read whole videos, then decode windows as training does."""
    facts: dict[str, Any] = _read(source)
    if facts["videos_read"]:
        facts |= _decode(source)
    return Sample(where, **facts)


def _read(source: ClipSource) -> dict[str, Any]:
    """Videos spread over the list, from their start, up to `VIDEO_BYTES` of each."""
    chosen = np.unique(np.linspace(0, len(source.videos) - 1, VIDEOS).astype(int)).tolist()
    size, videos_read, unreadable = 0, 0, []
    begun = time.perf_counter()
    for index in chosen:
        try:
            location = source.videos.location(index)
            storage.check_is_file(location)
            with storage.open_stream(location) as stream:
                size += len(stream.read(VIDEO_BYTES))
            videos_read += 1
        except (OSError, OutsideRootError) as error:
            unreadable.append(f"{source.videos.name(index)}: {plain_error(str(error))}")
        if time.perf_counter() - begun > READ_SECONDS:
            break
    return {
        "bytes_read": size,
        "read_seconds": time.perf_counter() - begun,
        "videos_read": videos_read,
        "unreadable": tuple(unreadable),
    }


def _decode(source: ClipSource) -> dict[str, Any]:
    """The first windows of training, after one that starts the decoder's process."""
    clips, seconds = 0, 0.0
    unusable: list[str] = []
    deadline = time.perf_counter() + DECODE_SECONDS
    with WindowReader() as reader:
        read = partial(reader.read, seconds=source.config.decode_seconds)
        for number, task in enumerate(_tasks(source)):
            begun = time.perf_counter()
            try:
                window = load_window(source, task, read)
            except DataError as error:
                return {"unusable": tuple(unusable), "error": str(error)}
            unusable += [f"{r.video}: {r.reason}" for r in window.rejected]
            if number:
                clips += len(window.samples)
                seconds += time.perf_counter() - begun
            if time.perf_counter() > deadline:
                break
    return {"clips": clips, "decode_seconds": seconds, "unusable": tuple(dict.fromkeys(unusable))}


def _tasks(source: ClipSource) -> list[WindowTask]:
    batch = source.order.batch
    schedule = (np.arange(step * batch, (step + 1) * batch) for step in range(1_000_000))
    tasks = (task for step in plan_steps(schedule, source.order) for task in step.tasks)
    return list(islice(tasks, WINDOWS + 1))


def judge_list(videos: VideoList) -> Iterator[Finding]:
    """Whether the annotations can be read."""
    if videos.error:
        yield failure(
            LIST,
            plain_error(videos.error),
            "give --data.annotations and --data.root as this machine and all nodes see them; "
            "for a bucket, give the nodes a role or credentials that may list and read it",
            annotations=videos.annotations,
        )
    else:
        message = f"read in {videos.seconds:.1f} s from {videos.annotations}"
        figure = f"{videos.videos} videos"
        yield ok(LIST, message, figure, videos=videos.videos, seconds=videos.seconds)


def judge_sample(config: Config, sample: Sample | None) -> Iterator[Finding]:
    """Reading and decoding."""
    if sample is None:
        for area in (READING, DECODING):
            yield skipped(area, "the list of videos could not be read")
        return
    yield from _judge_reading(sample)
    if sample.error:
        advice = "mend what the message names; jobs/train.py would stop at the same place"
        yield failure(DECODING, f"on {sample.where}: {sample.error}", advice)
    elif sample.clips:
        yield _judge_decoding(config, sample)


def _judge_reading(sample: Sample) -> Iterator[Finding]:
    tried = sample.videos_read + len(sample.unreadable)
    if sample.unreadable:
        yield Finding(
            Level.WARNING if sample.videos_read else Level.FAILURE,
            READING,
            f"{sample.videos_read} of {tried}",
            f"videos could be read on {sample.where}; {sample.unreadable[0]}",
            "give --data.root as that machine sees it; for a bucket, allow the role or the "
            "credentials of the nodes s3:GetObject there",
            {"unreadable": list(sample.unreadable)},
        )
    elif tried:
        speed = sample.bytes_read / sample.read_seconds
        figure = f"{speed / 1e6:.0f} MB/s"
        message = f"{tried} videos, one after the other, on {sample.where}"
        if speed < SLOW_BYTES_PER_SECOND and sample.bytes_read > MIN_TIMED_BYTES:
            advice = (
                "keep the data in the region of the nodes, or on a faster file system; more "
                "decoding tasks (--cluster.decode-cpus) read more at once"
            )
            yield warning(READING, message, advice, figure, bytes_per_second=speed)
        else:
            yield ok(READING, message, figure, bytes_per_second=speed)


def _judge_decoding(config: Config, sample: Sample) -> Finding:
    per_clip = sample.decode_seconds / sample.clips
    figure = f"{1000 * per_clip:.0f} ms"
    shape = f"{config.data.num_frames}x{config.data.height}x{config.data.width}"
    message = f"per clip of {shape}, one task, {sample.clips} clips, on {sample.where}"
    values: dict[str, Any] = {"seconds_per_clip": per_clip, "clips": sample.clips}
    if not sample.unusable:
        return ok(DECODING, message, figure, **values)
    return warning(
        DECODING,
        f"{message}; unusable: {sample.unusable[0]}",
        "others take the place of unusable videos, up to "
        f"{config.data.max_bad_fraction:.0%} of all (data.max_bad_fraction); beyond it the run "
        "stops",
        figure,
        unusable=list(sample.unusable),
        **values,
    )
