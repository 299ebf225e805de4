"""The batches of `batches.iter_batches`, decoded by Ray Data tasks on any node of the cluster.

Every training worker has a stream for its own slots, so the order is exact whatever the number of
workers, and no worker waits for another one's decoding. The schedule is cut into segments, each a
Ray Dataset of the windows that its steps are the first to use; the next one is started while the
current one is still being read.

Only this file and `ray_data_internals.py` know Ray. It must be initialised in the calling process.
"""

import logging
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, ExecutionResources

from data_pipeline.batches import Batch, BatchAssembler, Samples, Step, plan_steps
from data_pipeline.blocks import decode_block, to_tasks, to_text, windows_of
from data_pipeline.clips import ClipSource, Window, WindowTask
from data_pipeline.decoding.cores import use_idle_priority
from data_pipeline.ray_data_internals import ExecutionLimits, join_fetching_threads

logger = logging.getLogger(__name__)

LEAD_DIVISOR = 4
"""The next segment is started when one LEAD_DIVISOR-th of the current one is read: the clips of a
window are spread over a segment, so its decoding ends long before its last step."""

SEGMENT_BYTES = 256 * 2**20
"""About the size of a segment; up to two segments of each stream are in the object store."""

MAX_SEGMENT_STEPS = 1024
"""Bound on the steps of a segment, however small the clips are."""

BLOCK_BYTES, BLOCK_WINDOWS = 32 * 2**20, 8
"""Limits on what one task decodes, since tasks take turns, and a task that dies is run again."""

WARN_SECONDS = 60.0
"""A warning is logged when the first window of a segment takes longer than this."""

OBJECT_STORE_FACTOR = 8
"""Object store that Ray Data may fill, in segments, so that it holds back no finished block."""


class Segment(NamedTuple):
    """Steps of a stream, and the windows that are decoded for them."""

    steps: list[Step]
    windows: Generator[Window]
    first: list[Window]
    """The first of the windows, which shows that decoding has begun; empty if there is none."""


def stream_batches(
    source: ClipSource,
    schedule: Iterator[Samples],
    *,
    cpu_limit: float | None = None,
    segment_bytes: int = SEGMENT_BYTES,
    idle_priority: bool = False,
) -> Generator[Batch]:
    """A batch per entry of `schedule`, in its order.

    `schedule` yields the samples that this worker needs for each step, int64 [N], N the same for
    all, -1 for a surplus slot. It is read two segments and two groups of windows ahead.
    `cpu_limit` bounds the CPUs that the decoding tasks hold together; None leaves it to Ray.
    With `idle_priority` decoding gets only CPU time that no other process wants.
    Closing the iterator stops the decoding.

    Raises ValueError for invalid arguments, DataError if none of the videos that were tried can
    give a clip, and RuntimeError if Ray delivers other samples than were requested.
    """
    decode_cpus = source.config.decode_cpus
    if cpu_limit is not None and cpu_limit < decode_cpus:
        raise ValueError(
            f"cpu_limit ({cpu_limit}) must be at least data.decode_cpus ({decode_cpus}), "
            "the CPUs of one decoding task"
        )
    if segment_bytes < 1:
        raise ValueError(f"segment_bytes must be at least 1, not {segment_bytes}")
    # The generator is a function of its own, so that wrong arguments raise at the call.
    return _stream(source, schedule, segment_bytes, cpu_limit, idle_priority)


def _stream(
    source: ClipSource,
    schedule: Iterator[Samples],
    segment_bytes: int,
    cpu_limit: float | None,
    idle_priority: bool,
) -> Generator[Batch]:
    decode_cpus = source.config.decode_cpus
    decoder = _Decoder(ray.put(source), source, cpu_limit, idle_priority)
    segments = _cut_into_segments(
        plan_steps(schedule, source.order), source.config.clip_bytes, segment_bytes
    )
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-segment")
    assembler = BatchAssembler(source.config)

    def begin() -> Future[Segment] | None:
        segment = next(segments, None)
        return None if segment is None else pool.submit(decoder.begin, segment)

    pending = begin()
    try:
        while pending is not None:
            segment = _result(pending, decode_cpus)
            pending = None
            with closing(segment.windows):
                arriving = chain(segment.first, segment.windows)
                for index, step in enumerate(segment.steps):
                    if index == len(segment.steps) // LEAD_DIVISOR:
                        pending = begin()
                    while assembler.lacks(step.samples):
                        assembler.add(next(arriving))
                    yield assembler.take(step.samples)
    finally:
        # A thread that calls Ray after its shutdown crashes the process, so wait for all of them.
        pool.shutdown(wait=True)
        if pending is not None and pending.exception() is None:
            pending.result().windows.close()
        join_fetching_threads()


def _result(pending: Future[Segment], decode_cpus: float) -> Segment:
    """The segment; a warning names the likely cause whenever it takes too long."""
    while True:
        try:
            return pending.result(timeout=WARN_SECONDS)
        except TimeoutError:
            if pending.done():
                raise
            logger.warning(
                "no clip has come for %g s: a decoding task may be waiting for %g CPUs "
                "(data.decode_cpus) on a node that may decode; on a cluster `ray status` shows "
                "which resources are in use",
                WARN_SECONDS,
                decode_cpus,
            )


def _cut_into_segments(
    steps: Iterator[Step], clip_bytes: int, segment_bytes: int
) -> Iterator[list[Step]]:
    """Lists of steps whose windows have about `segment_bytes` together."""
    segment: list[Step] = []
    size = 0
    for step in steps:
        new = sum(len(task.clips) for task in step.tasks) * clip_bytes
        if segment and (size + new > segment_bytes or len(segment) == MAX_SEGMENT_STEPS):
            yield segment
            segment, size = [], 0
        segment.append(step)
        size += new
    if segment:
        yield segment


@dataclass(frozen=True)
class _Decoder:
    """Starts the decoding of one stream's segments."""

    shared: "ray.ObjectRef[ClipSource]"
    """`source` in the object store, so that it is not in every task's arguments."""

    source: ClipSource
    cpu_limit: float | None
    idle_priority: bool

    def begin(self, steps: list[Step]) -> Segment:
        """Start a segment and wait for its first window."""
        tasks = [task for step in steps for task in step.tasks]
        windows = self._windows(tasks)
        return Segment(steps, windows, [next(windows)] if tasks else [])

    def _windows(self, tasks: list[WindowTask]) -> Generator[Window]:
        if not tasks:
            return
        config = self.source.config
        window_bytes = self.source.order.clips_per_window * config.clip_bytes
        length = max(1, min(BLOCK_WINDOWS, BLOCK_BYTES // window_bytes))
        blocks = [tasks[first : first + length] for first in range(0, len(tasks), length)]
        key, _, value = config.decode_nodes.partition("=")
        where = {"label_selector": {key: value}} if key else {}
        with DataContext.current(self._context(len(tasks) * window_bytes)):
            delivered = iter(
                # `from_items` starts no tasks; `from_arrow` would need a whole CPU per table to
                # inspect its columns.
                ray.data.from_items(
                    [{"tasks": to_text(block)} for block in blocks],
                    override_num_blocks=len(blocks),
                )
                .map_batches(
                    partial(_decode_block, self.shared, self.idle_priority),
                    batch_size=None,
                    batch_format="pyarrow",
                    num_cpus=config.decode_cpus,
                    **where,
                )
                .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
            )
        with closing(delivered):
            for block in blocks:
                yield from windows_of(block, next(delivered, None))

    def _context(self, size: int) -> DataContext:
        """Ray Data's settings for a segment of `size` bytes."""
        context = quiet_context()
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources(
            cpu=self.cpu_limit, object_store_memory=OBJECT_STORE_FACTOR * max(SEGMENT_BYTES, size)
        )
        # One block per task: a task whose second block finds no room would hold its CPU until the
        # first is read, and streams that share few CPUs would wait for each other.
        context.target_max_block_size = None
        context.custom_execution_callback_classes = [ExecutionLimits]
        # Training may pause for any length of time, to validate or to save.
        context.execution_no_progress_timeout_s = -1
        return context


def quiet_context() -> DataContext:
    """A copy of Ray Data's settings, with which it prints and logs nothing but errors."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # The only remaining warning is that progress bars are off.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return context


def _decode_block(
    shared: "ray.ObjectRef[ClipSource]", idle_priority: bool, block: pa.Table
) -> dict[str, Any]:
    """The Ray task: the clips of some windows, a row each."""
    if idle_priority:
        use_idle_priority()
    return decode_block(ray.get(shared), to_tasks(block.column("tasks")[0].as_py()))
