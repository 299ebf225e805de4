"""SIGKILL of the processes of a job through Ray."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import record
from tests.faults.compare import assert_same_end
from tests.faults.job import GRACE, STEPS, Job
from tests.faults.leftovers import own_temp, wait_until_gone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

UNHARMED = "the job ends bit for bit as the undisturbed one"

DECODED = ("decoded_frames_per_used_frame",)
"""What was in a killed life's segments is decoded again."""


@pytest.fixture
def temp() -> Iterator[Path]:
    # What a killed process of Ray Train had for its workers to meet stays; see the job's end.
    with own_temp(may_leave_folders=True) as folder:
        yield folder


@pytest.fixture
def chance() -> random.Random:
    return random.Random(int(os.environ.get("FAULTS_SEED", "0")))


def kill_on_the_way(job: Job, kind: str, rows: list[int], chance: random.Random) -> None:
    """One process of the kind, each time that the run has so many rows."""
    for count in rows:
        job.wait_for_rows(count)
        job.kill_one(kind, chance)
        # Time for something to be decoded in between.
        time.sleep(1.0)


def kill_the_driver(job: Job, rows: int) -> Job:
    """Nothing of the job outlives it; a new one goes on."""
    job.wait_for_rows(rows)
    job.process.kill()
    job.wait()
    assert wait_until_gone(job.temp, GRACE) == []
    return Job.start(job.annotations, job.run, job.temp, "--train.resume", "latest")


def assert_undisturbed(job: Job, reference: Path) -> None:
    assert job.wait() == 0, job.output
    assert_same_end(job.run, reference, besides=DECODED)
    assert wait_until_gone(job.temp, GRACE) == []


def test_training_workers(
    videos: Path, reference: Path, temp: Path, tmp_path: Path, chance: random.Random
) -> None:
    job = Job.start(videos, tmp_path / "run", temp)
    rows = sorted(chance.sample(range(1, STEPS - 2), 3))
    kill_on_the_way(job, "training worker", rows, chance)
    assert_undisturbed(job, reference)
    record.note("kill -9 of a training worker", UNHARMED, 3)


@pytest.mark.parametrize("kind", ["decode task", "decoder"])
def test_decoding(
    videos: Path,
    reference: Path,
    temp: Path,
    tmp_path: Path,
    chance: random.Random,
    kind: str,
) -> None:
    job = Job.start(videos, tmp_path / "run", temp)
    kill_on_the_way(job, kind, [0, 0, 0], chance)
    assert_undisturbed(job, reference)
    record.note(f"kill -9 of a {kind}", UNHARMED, 3)


def test_the_driver(
    videos: Path, reference: Path, temp: Path, tmp_path: Path, chance: random.Random
) -> None:
    job = Job.start(videos, tmp_path / "run", temp)
    for rows in sorted(chance.sample(range(1, STEPS - 2), 3)):
        job = kill_the_driver(job, rows)
    assert_undisturbed(job, reference)
    record.note("kill -9 of the driver", f"no process left; resumed, {UNHARMED}", 3)
