"""Which windows a step needs: every sample once, in order, whatever the workers and restarts."""

import random
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
import pytest

from data_pipeline.batches import Samples, Step, plan_steps
from data_pipeline.config import DataConfig
from data_pipeline.plan import SampleOrder

BATCH = 6


def order_of(videos: int = 50, clips: int = 4, augment: bool = True) -> SampleOrder:
    return SampleOrder(3, videos, BATCH, DataConfig(clips_per_window=clips), augment)


def schedule(
    first: int, last: int, rank: int = 0, workers: int = 1, total: int | None = None
) -> Iterator[Samples]:
    """A worker's rows of steps [first, last): whole slots each; -1 beyond `total` samples."""
    per_worker = -(-BATCH // workers)
    slots = np.arange(rank * per_worker, (rank + 1) * per_worker, dtype=np.int64)
    for step in range(first, last):
        samples = step * BATCH + slots
        there = slots < BATCH if total is None else (slots < BATCH) & (samples < total)
        yield np.where(there, samples, -1)


def check(steps: list[Step], order: SampleOrder) -> list[int]:
    """All samples of the steps, each of which is decoded once, by its step at the latest."""
    decoded: set[int] = set()
    asked: list[int] = []
    for step in steps:
        for task in step.tasks:
            assert not decoded & set(task.samples)
            decoded |= set(task.samples)
            for clip, sample in zip(task.clips, task.samples, strict=True):
                assert order.locate(sample) == (task.key, clip)
        wanted = [s for s in step.samples.tolist() if s != -1]
        assert decoded >= set(wanted)
        asked += wanted
    assert decoded == set(asked)
    return asked


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize(("videos", "clips"), [(50, 4), (300, 3), (1, 5), (7, 1)])
def test_workers_share_the_samples_out(videos: int, clips: int, workers: int) -> None:
    """Over several epochs, of which none is a multiple of the batch."""
    order = order_of(videos, clips)
    last = 2 * order.epoch_samples // BATCH + 3
    asked = [
        check(list(plan_steps(schedule(0, last, rank, workers), order)), order)
        for rank in range(workers)
    ]
    assert sorted(chain(*asked)) == list(range(last * BATCH))


def test_a_partial_last_batch_has_surplus_slots() -> None:
    order = order_of(videos=50)
    total = order.epoch_samples + 2
    steps = list(plan_steps(schedule(0, total // BATCH + 1, total=total), order))
    assert check(steps, order) == list(range(total))
    assert (steps[-1].samples == -1).sum() == BATCH - total % BATCH


def test_a_run_resumed_anywhere_decodes_at_most_two_groups_again() -> None:
    order = order_of(videos=300)
    last = 3 * order.epoch_samples // BATCH
    whole = list(plan_steps(schedule(0, last), order))
    for first in random.Random(0).sample(range(last), 20):
        resumed = list(plan_steps(schedule(first, last), order))
        assert check(resumed, order) == list(range(first * BATCH, last * BATCH))
        windows = {task.key for step in resumed for task in step.tasks}
        before = {task.key for step in whole[:first] for task in step.tasks}
        assert len(windows & before) <= 2 * order.group_windows


def test_a_window_is_decoded_once_by_one_worker() -> None:
    """But in the last group of an epoch."""
    order = order_of(videos=3000)
    last = order.epoch_samples // BATCH
    tasks = [
        task
        for rank in range(2)
        for step in plan_steps(schedule(0, last, rank, 2), order)
        for task in step.tasks
    ]
    repeated = len(tasks) - len({task.key for task in tasks})
    assert repeated < 2 * 2 * order.group_windows
    whole = [task for task in tasks if len(task.clips) == 4]
    assert len(whole) > 0.8 * len(tasks)


def test_the_schedule_is_read_ahead_by_two_groups_at_most() -> None:
    order = order_of(videos=1000)
    read = []

    def endless() -> Iterator[Samples]:
        for samples in schedule(0, 10**9):
            read.append(samples)
            yield samples

    steps = list(islice(plan_steps(endless(), order), 5))
    assert len(steps) == 5
    assert len(read) <= 5 + 2 * order.group_windows * 4 // BATCH + 1


def test_steps_of_different_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match="the same number of samples"):
        list(plan_steps(iter([np.array([0, 1]), np.array([2])]), order_of()))
