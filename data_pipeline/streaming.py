"""The batches of `batches.iter_batches`, decoded by Ray Data tasks on any node of the cluster.

Every training worker runs a stream of its own over its own rows, so the order is exact whatever
the number of workers, and no worker waits for another one's decoding. The schedule is cut into
segments, each a Ray Dataset with one block per training step; the next one is started while the
current one is still being read.

This is the only file that knows Ray Data. Ray must be initialised in the calling process.
"""

import json
import logging
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, ExecutionResources

from data_pipeline.batches import Batch, RejectedVideo, Samples, load_batch
from data_pipeline.clips import ClipSource
from data_pipeline.errors import DataError

LEAD = 4
"""The next segment is started when a LEAD-th of the current one is left to read."""

SEGMENT_BYTES = 128 * 2**20
"""About the size of a segment; up to two segments of each stream are in the object store."""

FEWEST_STEPS, MOST_STEPS = 16, 256
"""Bounds on the steps of a segment: to start one costs a second, to list its blocks memory."""

ROOM = 8
"""Times a segment's size that Ray Data may fill. With less it holds back finished blocks, and while
it does, its scheduling thread spins and takes the interpreter from the training thread."""

Segment = tuple[Batch, Generator[Batch]]
"""The first batch of a segment, and the iterator that yields the others."""


def stream_batches(
    source: ClipSource,
    schedule: Iterator[Samples],
    *,
    cpu_limit: float | None = None,
    segment_steps: int | None = None,
    prefetch_batches: int = 2,
) -> Generator[Batch]:
    """A batch per entry of `schedule`, in its order; `frames` are read-only.

    `schedule` yields the samples that this worker needs for each step, int64 [N], N the same for
    all, -1 for a surplus slot. It is read up to two segments ahead of the training.
    `cpu_limit` bounds the CPUs that the decoding tasks hold together; None leaves it to Ray.
    To close the iterator stops the decoding.

    Raises ValueError where an argument makes no sense, DataError where a clip cannot be made from
    any video that was tried, and RuntimeError where Ray delivers other samples than were asked.
    """
    decode_cpus = source.config.decode_cpus
    if cpu_limit is not None and cpu_limit < decode_cpus:
        raise ValueError(
            f"cpu_limit ({cpu_limit}) must be at least data.decode_cpus ({decode_cpus}), "
            "the CPUs of one decoding task"
        )
    if segment_steps is not None and segment_steps < 1:
        raise ValueError(f"segment_steps must be at least 1, not {segment_steps}")
    # A function of its own, so that wrong arguments are told at the call, not at the first batch.
    return _stream(source, schedule, cpu_limit, segment_steps, prefetch_batches)


def _stream(
    source: ClipSource,
    schedule: Iterator[Samples],
    cpu_limit: float | None,
    segment_steps: int | None,
    prefetch_batches: int,
) -> Generator[Batch]:
    decoder = _Decoder(ray.put(source), source.config.decode_cpus, cpu_limit, prefetch_batches)
    first_step = list(islice(schedule, 1))
    if not first_step:
        return
    whole_schedule = chain(first_step, schedule)
    length = segment_steps or _segment_length(source, rows=len(first_step[0]))
    segments = iter(lambda: list(islice(whole_schedule, length)), [])
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-segment")

    def begin(steps: list[Samples] | None) -> Future[Segment] | None:
        return None if steps is None else pool.submit(decoder.begin, steps)

    steps = next(segments, None)
    pending = begin(steps)
    try:
        while steps is not None and pending is not None:
            first, others = pending.result()
            pending = None
            start_next = len(steps) - max(1, len(steps) // LEAD)
            with closing(others):
                for index, batch in enumerate(chain([first], others)):
                    if index == start_next:
                        steps = next(segments, None)
                        pending = begin(steps)
                    yield batch
    finally:
        if pending is not None:
            pending.add_done_callback(_abandon)
        pool.shutdown(wait=False)


def _segment_length(source: ClipSource, rows: int) -> int:
    """Steps of `rows` clips that make a segment of about SEGMENT_BYTES."""
    return max(FEWEST_STEPS, min(MOST_STEPS, SEGMENT_BYTES // max(1, _batch_bytes(source, rows))))


def _batch_bytes(source: ClipSource, rows: int) -> int:
    config = source.config
    return rows * config.num_frames * 3 * config.height * config.width


def _abandon(pending: Future[Segment]) -> None:
    """Stop the decoding of a segment that nobody will read."""
    if pending.exception() is None:
        pending.result()[1].close()


@dataclass(frozen=True)
class _Decoder:
    """How the segments of one stream are decoded."""

    source: "ray.ObjectRef[ClipSource]"
    """In the object store once, rather than in every task's arguments."""

    decode_cpus: float
    cpu_limit: float | None
    prefetch_batches: int

    def begin(self, steps: list[Samples]) -> Segment:
        """Start a segment and wait for its first batch."""
        batches = self._batches(steps)
        return next(batches), batches

    def _batches(self, steps: list[Samples]) -> Generator[Batch]:
        rows = len(steps[0])
        if rows == 0 or any(len(samples) != rows for samples in steps):
            raise ValueError("every step of a schedule must ask for the same number of samples")
        with DataContext.current(self._context(len(steps), rows)):
            blocks = ray.data.from_arrow([pa.table({"sample": samples}) for samples in steps])
            clips = blocks.map_batches(
                partial(_decode_block, self.source),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=self.decode_cpus,
            )
            delivered = iter(
                clips.iter_batches(
                    batch_size=rows, batch_format="numpy", prefetch_batches=self.prefetch_batches
                )
            )
        with closing(delivered):
            for samples in steps:
                yield _checked(samples, next(delivered, None))

    def _context(self, steps: int, rows: int) -> DataContext:
        """Ray Data's settings for a segment of `steps` batches of `rows` clips."""
        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources(
            cpu=self.cpu_limit,
            object_store_memory=ROOM
            * max(SEGMENT_BYTES, steps * _batch_bytes(ray.get(self.source), rows)),
        )
        # One block per task: a task that could not hand out its second block would hold its CPU
        # until somebody reads, and streams that share few CPUs would wait for each other.
        context.target_max_block_size = None
        # Training may pause for as long as it likes, to validate or to save.
        context.execution_no_progress_timeout_s = -1
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # What is left at WARNING is that progress bars are off.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        return context


def _decode_block(source: "ray.ObjectRef[ClipSource]", block: pa.Table) -> dict[str, Any]:
    """The clips of one block, in a Ray task.

    A DataError travels as text, since Ray would wrap an exception and might try again.
    """
    samples = block.column("sample").to_numpy()
    clip_source = ray.get(source)
    try:
        batch, failure = load_batch(clip_source, samples), ""
    except DataError as error:
        # Surplus slots make a batch of the same form.
        batch, failure = load_batch(clip_source, np.full_like(samples, -1)), str(error)
    count = len(samples)
    return {
        "frames": batch["frames"],
        "sample": samples,
        "video": np.array(batch["video"], dtype=object),
        # A block has equal columns: what concerns the whole batch is repeated in each row.
        "rejected": np.array([json.dumps(batch["rejected"])] * count, dtype=object),
        "failure": np.array([failure] * count, dtype=object),
    }


def _checked(asked: Samples, columns: dict[str, Any] | None) -> Batch:
    """The columns of one delivered batch as a Batch, if they are those that were asked."""
    if columns is None:
        raise RuntimeError(f"Ray Data delivered nothing where samples {asked} were asked")
    if not np.array_equal(asked, columns["sample"]):
        raise RuntimeError(f"Ray Data delivered samples {columns['sample']}, asked were {asked}")
    failure = str(columns["failure"][0])
    if failure:
        raise DataError(failure)
    rejected: list[RejectedVideo] = json.loads(columns["rejected"][0])
    return Batch(
        frames=columns["frames"],
        sample=columns["sample"],
        video=columns["video"].tolist(),
        rejected=rejected,
    )
