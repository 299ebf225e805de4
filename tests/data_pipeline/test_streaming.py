"""Ray Data delivers what the plain iterator delivers, bit for bit."""

import dataclasses
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.internal_api import memory_summary
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from data_pipeline import ray_data_internals
from data_pipeline.batches import Batch, Samples, iter_batches
from data_pipeline.clips import ClipSource, open_sources
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.streaming import stream_batches
from tests.helpers.data_videos import write_annotations, write_dataset
from tests.helpers.local_ray import local_ray


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with local_ray():
        yield


def source_of(annotations: Path) -> ClipSource:
    config = DataConfig(
        annotations=str(annotations),
        height=16,
        width=24,
        num_frames=5,
        validation_fraction=0.1,
        decode_cpus=0.5,
    )
    return open_sources(config, seed=0, batch=3)[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    """Seven videos of which one is missing and one is not a video."""
    annotations = write_dataset(tmp_path_factory.mktemp("data"), count=8)
    source = source_of(annotations)
    absent, corrupt = source.videos.name(0), source.videos.name(1)
    (annotations.parent / absent).unlink()
    (annotations.parent / corrupt).write_bytes(b"nothing of a video")
    return source


def schedule(steps: int, rows: int = 3) -> list[Samples]:
    """Steps of `rows` samples, the last slot of every other step surplus."""
    samples = np.arange(steps * rows, dtype=np.int64).reshape(steps, rows)
    samples[::2, -1] = -1
    return list(samples)


def assert_same_clips(streamed: list[Batch], plain: list[Batch]) -> None:
    assert len(streamed) == len(plain)
    for left, right in zip(streamed, plain, strict=True):
        assert left["frames"].dtype == np.uint8
        assert left["frames"].flags.c_contiguous
        np.testing.assert_array_equal(left["frames"], right["frames"])
        np.testing.assert_array_equal(left["sample"], right["sample"])
        assert left["sample"].dtype == np.int64
        assert left["video"] == right["video"]
        assert left["transient_failures"] == right["transient_failures"]
    assert rejected(streamed) == rejected(plain)


def test_every_segment_has_the_cpus_it_was_given(
    source: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two segments are under way at a time, and Ray Data has two CPUs to share out."""
    limits: dict[int, list[float]] = {}
    look = StreamingExecutor._scheduling_loop_step

    def looked(executor: StreamingExecutor, topology: Any) -> bool:
        manager = executor._resource_manager
        limits.setdefault(id(executor), []).append(manager.get_global_limits().cpu)
        return bool(look(executor, topology))

    monkeypatch.setattr(StreamingExecutor, "_scheduling_loop_step", looked)
    steps = schedule(24)
    assert len(list(stream_batches(source, iter(steps), cpu_limit=1.0, segment_bytes=1))) == 24
    assert len(limits) > 4
    assert {cpus for seen in limits.values() for cpus in seen} == {1.0}


def test_a_scheduling_thread_without_a_task_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    slept: list[float] = []
    limits = ray_data_internals.ExecutionLimits()
    executor: Any = SimpleNamespace(_resource_manager=SimpleNamespace())
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", slept.append)
    limits.before_execution_starts(executor)
    limits.on_execution_step(executor)
    limits.on_execution_step(executor)
    now += 10
    limits.on_execution_step(executor)
    assert slept == [0.0, pytest.approx(ray_data_internals.MIN_LOOP_SECONDS), 0.0]


def assert_same(streamed: list[Batch], plain: list[Batch]) -> None:
    assert_same_clips(streamed, plain)
    assert sum(b["decoded"] for b in streamed) == sum(b["decoded"] for b in plain) > 0


def rejected(batches: list[Batch]) -> dict[str, str]:
    return {entry["video"]: entry["reason"] for batch in batches for entry in batch["rejected"]}


@pytest.mark.parametrize(("segment_bytes", "cpu_limit"), [(50_000, 0.5), (2**27, 2.0)])
def test_the_stream_equals_the_plain_iterator(
    source: ClipSource, segment_bytes: int, cpu_limit: float
) -> None:
    """One decoding task or four at a time; many segments or one."""
    streamed = stream_batches(
        source, iter(schedule(13)), cpu_limit=cpu_limit, segment_bytes=segment_bytes
    )
    plain = list(iter_batches(source, iter(schedule(13))))
    assert len(rejected(plain)) == 2
    assert_same(list(streamed), plain)


def test_a_stream_that_gives_way_is_the_same(source: ClipSource) -> None:
    streamed = stream_batches(source, iter(schedule(5)), idle_priority=True)
    assert_same(list(streamed), list(iter_batches(source, iter(schedule(5)))))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know niceness alone")
def test_who_gives_way_runs_after_all_others_and_so_do_its_children() -> None:
    ask = "import os; print(os.sched_getscheduler(0) == os.SCHED_IDLE)"
    script = (
        "import subprocess, sys; from data_pipeline.decoding.cores import use_idle_priority; "
        "use_idle_priority(); "
        f"{ask}; sys.stdout.flush(); subprocess.run([sys.executable, '-c', {ask!r}])"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["True", "True"]


def test_one_clip_a_step(source: ClipSource) -> None:
    steps = [np.array([n]) for n in range(4)]
    streamed = stream_batches(source, iter(steps), segment_bytes=1)
    assert_same(list(streamed), list(iter_batches(source, iter(steps))))


def test_an_endless_schedule_is_read_ahead_by_a_bounded_number(source: ClipSource) -> None:
    asked = []

    def endless() -> Iterator[Samples]:
        n = 0
        while True:
            asked.append(n)
            yield np.array([n])
            n += 1

    stream = stream_batches(source, endless(), segment_bytes=1)
    received = [batch["sample"].item() for batch in islice(stream, 9)]
    stream.close()
    assert received == list(range(9))
    group = source.order.group_windows * source.order.clips_per_window
    assert len(asked) <= 9 + 4 * group


def test_an_empty_schedule_ends_at_once(source: ClipSource) -> None:
    assert list(stream_batches(source, iter([]))) == []


def test_a_data_error_arrives_as_itself(tmp_path: Path) -> None:
    source = source_of(write_annotations(tmp_path, ["absent.mp4", "absent_too.mp4"]))
    stream = stream_batches(source, iter(schedule(4)), segment_bytes=1)
    with pytest.raises(DataError, match="absent"):
        next(stream)


def test_wrong_arguments_are_told_at_the_call(source: ClipSource) -> None:
    with pytest.raises(ValueError, match=r"cpu_limit \(0.1\) must be at least data.decode_cpus"):
        stream_batches(source, iter([]), cpu_limit=0.1)
    with pytest.raises(ValueError, match="segment_bytes must be at least 1"):
        stream_batches(source, iter([]), segment_bytes=0)
    uneven = [np.array([0, 1]), np.array([2])]
    with pytest.raises(ValueError, match="the same number of samples"):
        next(stream_batches(source, iter(uneven)))


def test_a_slow_consumer_finds_the_object_store_bounded(source: ClipSource) -> None:
    """330 MB are wanted in all; two segments of 8 MB each, and their groups, are there at most."""
    config = dataclasses.replace(source.config, height=96, width=128)
    source = dataclasses.replace(source, order=dataclasses.replace(source.order, config=config))
    steps = [np.arange(k * 60, (k + 1) * 60, dtype=np.int64) for k in range(30)]
    segment_bytes = 2**23
    before = _stored_bytes()
    stream = stream_batches(source, iter(steps), segment_bytes=segment_bytes)
    most = 0.0
    for _ in islice(stream, 2):
        time.sleep(2)
        most = max(most, _stored_bytes() - before)
    # A busy machine takes longer to decode as much as is to be bounded.
    deadline = time.monotonic() + 180
    while most < 10e6 and time.monotonic() < deadline:
        time.sleep(2)
        most = max(most, _stored_bytes() - before)
    stream.close()
    group = source.order.group_windows * source.order.clips_per_window * config.clip_bytes
    wanted = 30 * 60 * config.clip_bytes
    assert 10e6 < most < 2 * (segment_bytes + group) < wanted / 3


def _stored_bytes() -> float:
    """Bytes in the object store of this machine."""
    address = ray.get_runtime_context().gcs_address
    summary = memory_summary(address=address, stats_only=True)
    used = re.search(r"Plasma memory usage (\d+\.?\d*) MiB", summary)
    assert used, summary
    return float(used[1]) * 2**20
