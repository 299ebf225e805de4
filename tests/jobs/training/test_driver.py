"""What ends an attempt at a run under Ray, and which of these ends count as failures."""

import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.train import WorkerGroupError

from data_pipeline.config import DataConfig
from jobs.cli.config import ClusterConfig, Config
from jobs.cluster.capacity import Allocation
from jobs.training import driver as driver_module
from jobs.training import worker
from jobs.training.driver import Driver
from jobs.training.messages import (
    Mailbox,
    OutOfMemory,
    RunEnded,
    RunFailed,
    StepDone,
    VideosQuarantined,
    WorkerMessage,
    WorkerStarted,
)
from taehv.errors import MemoryShortageError, TrainingError
from taehv.interfaces import RejectedVideo
from taehv.training.config import TrainConfig

SHORT = OutOfMemory("a pass of 8 clips is too large", 4)
FINISHED = {"finished": True, "step": 6, "baselines": {}}


class Remote:
    """An actor's method, called here and now."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.remote = method


class HereAndNow:
    """A mailbox without its actor."""

    def __init__(self) -> None:
        self.state = Mailbox()

    def __getattr__(self, name: str) -> Remote:
        return Remote(getattr(self.state, name))


class FakeCapacity:
    left = 0

    def __enter__(self) -> "FakeCapacity":
        return self

    def __exit__(self, *_: object) -> None:
        self.left += 1

    def wait_for_allocation(self, cancelled: Callable[[], bool]) -> Allocation:
        return Allocation(2, False, 1.0, 1.0)

    def request_nodes(self, workers: int) -> None:
        pass

    def could_add_workers(self, workers: int) -> bool:
        return False

    def probe_nodes(self) -> None:
        pass

    def fitting_workers(self) -> int:
        return 2

    def available_node_ids(self) -> set[str]:
        return {"a", "b"}


class FakeTrainer:
    """Workers that say something and end: well with a summary, else in an error."""

    def __init__(self, mailbox: HereAndNow, says: list[WorkerMessage]) -> None:
        self.mailbox, self.says = mailbox, says

    def fit(self) -> None:
        for message in self.says:
            self.mailbox.put.remote(message)
        if not any(isinstance(message, RunEnded) for message in self.says):
            raise WorkerGroupError("a worker has raised", {})


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> HereAndNow:
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(driver_module, "draining_nodes", lambda: set())
    monkeypatch.setattr(driver_module, "POLL_SECONDS", 0.01)
    return HereAndNow()


class Silent:
    """No progress is shown."""

    def step(self, step: int) -> None:
        pass

    def workers_placed(self, placement_group: object) -> None:
        pass

    def skipped(self, videos: int) -> None:
        pass


def drive(
    mailbox: HereAndNow,
    folder: Path,
    config: Config,
    attempts: list[list[WorkerMessage]],
) -> list[int]:
    """Drive a run through `attempts`; the limit on clips per pass that each of them is given."""
    limits: list[int] = []

    def make_trainer(config: Config, allocation: Allocation) -> Any:
        limits.append(config.train.max_clips_per_pass)
        assert config.train.global_batch_size == 8
        return FakeTrainer(mailbox, attempts[len(limits) - 1])

    nobody: Any = None
    capacity: Any = FakeCapacity()
    progress: Any = Silent()
    driver = Driver(
        in_folder(config, folder),
        mailbox,
        lambda: nobody,
        progress,
        1,
        capacity,
        make_trainer,
    )
    try:
        assert driver.drive() == FINISHED
    finally:
        # However the run ended, the autoscaler is asked for nothing more.
        assert capacity.left == 1
    return limits


def in_folder(config: Config, folder: Path) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, run_dir=str(folder)))


def config_with(max_failures: int) -> Config:
    return Config(
        train=TrainConfig(global_batch_size=8, auto_micro_batch=True),
        cluster=ClusterConfig(max_failures=max_failures),
    )


def test_the_next_attempt_has_smaller_passes_and_no_failure_is_counted(
    mailbox: HereAndNow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    smaller = dataclasses.replace(SHORT, clips_per_pass=2)
    # Both workers of the first attempt say so.
    attempts: list[list[WorkerMessage]] = [[SHORT] * 2, [smaller], [RunEnded(FINISHED)]]
    assert drive(mailbox, tmp_path, config_with(max_failures=0), attempts) == [0, 4, 2]
    assert caplog.text.count("a pass of 8 clips is too large; starting the workers again") == 2
    assert "with train.max_clips_per_pass 4 (the global batch stays)" in caplog.text


def test_a_death_after_a_shortage_is_a_failure(mailbox: HereAndNow, tmp_path: Path) -> None:
    attempts: list[list[WorkerMessage]] = [[SHORT], [], [RunEnded(FINISHED)]]
    assert drive(mailbox, tmp_path, config_with(max_failures=1), attempts) == [0, 4, 4]
    with pytest.raises(TrainingError, match=r"cluster\.max_failures is 0"):
        drive(mailbox, tmp_path, config_with(max_failures=0), attempts)


def test_a_death_over_a_lost_node_is_none_though_the_node_is_replaced(
    mailbox: HereAndNow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """There is room for as many workers as before: nodes a and b, where it ran on a and c."""
    attempts: list[list[WorkerMessage]] = [
        [WorkerStarted("a"), WorkerStarted("c")],
        [WorkerStarted("a"), RunEnded(FINISHED)],
    ]
    assert drive(mailbox, tmp_path, config_with(max_failures=0), attempts) == [0, 0]
    assert "nodes have gone" in caplog.text


def test_attempts_that_lose_their_nodes_and_get_nowhere_come_to_an_end(
    mailbox: HereAndNow, tmp_path: Path
) -> None:
    """An attempt that gets further begins the count anew."""
    most = driver_module.MAX_RESTARTS_WITHOUT_PROGRESS
    lost: list[WorkerMessage] = [WorkerStarted("c")]
    first = [[*lost, StepDone(3)]] * most
    then = [[*lost, StepDone(4)]] * most
    end: list[list[WorkerMessage]] = [[RunEnded(FINISHED)]]
    config = config_with(max_failures=0)
    assert len(drive(mailbox, tmp_path, config, first + then + end)) == 2 * most + 1
    with pytest.raises(TrainingError, match=f"{most} times in a row .* got past step 4 .* raised"):
        drive(mailbox, tmp_path, config, first + then + [lost])


@pytest.mark.parametrize(("allowed", "stops"), [(0.0, True), (0.999, True), (1.0, False)])
def test_too_many_bad_videos_stop_the_run(
    mailbox: HereAndNow,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    allowed: float,
    stops: bool,
) -> None:
    """Of one video; the job itself is seen to do so in tests/jobs/test_train.py."""
    rejected: list[RejectedVideo] = [{"video": "broken.mp4", "reason": "no video"}]
    data = DataConfig(max_bad_fraction=allowed)
    config = dataclasses.replace(config_with(max_failures=0), data=data)
    says: list[WorkerMessage] = [VideosQuarantined(rejected, 1), RunEnded(FINISHED)]
    if stops:
        with pytest.raises(TrainingError, match=r"1 videos cannot be used, .* of the 1 videos"):
            drive(mailbox, tmp_path, config, [says])
        assert mailbox.state.stop_requested()
    else:
        drive(mailbox, tmp_path, config, [says])
        assert not mailbox.state.stop_requested()
    assert "video broken.mp4 is skipped: no video" in caplog.text


@pytest.mark.parametrize(("wanted", "halved"), [(True, 4), (True, 0), (False, 4)])
def test_a_worker_asks_for_smaller_passes_or_says_that_there_are_none(
    mailbox: HereAndNow, wanted: bool, halved: int
) -> None:
    error = MemoryShortageError("too large; try less", shortage="too large", halved_pass=halved)
    config = config_with(max_failures=0)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, auto_micro_batch=wanted)
    )
    worker._report_shortage(mailbox, config, error)
    asked = OutOfMemory("too large", 4)
    given_up = RunFailed("too large; try less")
    assert mailbox.state.take() == [asked if wanted and halved else given_up]


def test_a_signal_while_workers_are_about_to_start_is_passed_on(
    mailbox: HereAndNow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request to stop reaches the mailbox before the attempt begins, which withdraws it."""

    class Workers(FakeTrainer):
        def fit(self) -> None:
            end = {"finished": not mailbox.state.stop_requested(), "step": 3, "baselines": {}}
            mailbox.put.remote(RunEnded(end))

    def interrupted() -> bool:
        driver.stop(signal.SIGTERM)
        return Mailbox.begin(mailbox.state)

    monkeypatch.setattr(mailbox.state, "begin", interrupted)
    nobody: Any = None
    capacity: Any = FakeCapacity()
    progress: Any = Silent()
    trainer: Any = Workers(mailbox, [])
    driver = Driver(
        in_folder(Config(), tmp_path),
        mailbox,
        lambda: nobody,
        progress,
        1,
        capacity,
        lambda config, allocation: trainer,
    )
    summary = driver.drive()
    assert summary is not None
    assert not summary["finished"]


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_a_worker_computes_on_the_cores_that_it_may_use(
    mailbox: HereAndNow, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = SimpleNamespace(get_local_rank=lambda: 0, get_local_world_size=lambda: 1)
    monkeypatch.setattr("jobs.training.worker.ray_train.get_context", lambda: alone)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    records = logging.getLogRecordFactory()
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        os.sched_setaffinity(0, {max(cores)})
        worker._set_up_process(mailbox)
        assert torch.get_num_threads() == 1
    finally:
        logging.setLogRecordFactory(records)
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
