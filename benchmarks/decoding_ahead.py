"""Clips for `taehv.training.train` without Ray: decoded ahead of need by some processes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from queue import SimpleQueue

import numpy as np

from data_pipeline.batches import BatchAssembler, Step, iter_batches, plan_steps
from data_pipeline.clips import ClipSource, Window, WindowTask, load_window
from data_pipeline.decoding.sandbox import WindowReader
from taehv.interfaces import Batch, TransientFailure

STEPS_AHEAD = 64
"""Windows come in bursts: in a group of 16 rows and four clips a window, 16 steps are the first to
use one, and the 48 after them need none."""


class DecodedAhead:
    """`taehv.interfaces.Data` over two sources; the clips are those of Ray Data's stream."""

    def __init__(self, training: ClipSource, validation: ClipSource, processes: int) -> None:
        self._training, self._validation = training, validation
        self._processes = processes
        self.waited = 0.0
        """Seconds that batches of training were waited for, but for the first of each stream."""

    def training(
        self,
        schedule: Iterator[np.ndarray],
        transient_failures: Sequence[TransientFailure],
        stage: int = 0,
    ) -> Iterator[Batch]:
        source = replace(self._training, transient_failures=frozenset(transient_failures))
        batches = decode_ahead(source, schedule, self._processes)
        yield next(batches)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def validation(self, schedule: Iterator[np.ndarray]) -> Iterator[Batch]:
        return iter(iter_batches(self._validation, schedule))


def decode_ahead(
    source: ClipSource, schedule: Iterator[np.ndarray], processes: int
) -> Iterator[Batch]:
    """The batches of `data_pipeline.batches.iter_batches`, whose windows `processes` read.

    Raises DataError where it does.
    """
    assembler = BatchAssembler(source.config)
    with ExitStack() as stack:
        idle: SimpleQueue[WindowReader] = SimpleQueue()
        for _ in range(processes):
            idle.put(stack.enter_context(WindowReader()))
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        # Runs before the pool waits for what it was given.
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)

        def load(task: WindowTask) -> Window:
            reader = idle.get()
            try:
                read = partial(reader.read, seconds=source.config.decode_seconds)
                return load_window(source, task, read)
            finally:
                idle.put(reader)

        def submit(step: Step) -> tuple[np.ndarray, list[Future[Window]]]:
            return step.samples, [pool.submit(load, task) for task in step.tasks]

        steps = map(submit, plan_steps(schedule, source.order))
        ahead = deque(islice(steps, STEPS_AHEAD))
        while ahead:
            samples, windows = ahead.popleft()
            for window in windows:
                assembler.add(window.result())
            ahead.extend(islice(steps, 1))
            yield assembler.take(samples)
