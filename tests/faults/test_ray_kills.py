"""SIGKILL of the processes of a job through Ray."""

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults import record
from tests.faults.compare import assert_same_end
from tests.faults.job import GRACE, STEPS, Job
from tests.faults.leftovers import own_temp, wait_until_gone
from tests.helpers.hold import READS

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

UNHARMED = "the job ends bit for bit as the undisturbed one"

DECODED = ("decoded_frames_per_used_frame",)
"""What was in a killed life's segments is decoded again."""

DECODERS = ("decode task", "decoder")


@pytest.fixture
def temp() -> Iterator[Path]:
    # What a killed process of Ray Train had for its workers to meet stays; see the job's end.
    with own_temp(may_leave_folders=True) as folder:
        yield folder


@pytest.fixture
def chance() -> random.Random:
    return random.Random(int(os.environ.get("FAULTS_SEED", "0")))


def start_and_strike(
    videos: Path, run: Path, temp: Path, blows: Sequence[tuple[str, int]], chance: random.Random
) -> Job:
    """A job of which processes are killed: for each blow, one of a kind, when the run has made so
    many steps, or, for what decodes, when so many windows have been read."""
    gates = [READS if kind in DECODERS else run.name for kind, _ in blows]
    limits: dict[str, list[int]] = {gate: [] for gate in gates}
    for gate, (_, moment) in zip(gates, blows, strict=True):
        limits[gate].append(moment)
    job = Job.start(videos, run, temp, limits={gate: limits[gate].pop(0) for gate in limits})
    for gate, (kind, _) in zip(gates, blows, strict=True):
        job.wait_until_held(gate)
        job.kill_one(kind, chance)
        job.hold.let_go(gate, limits[gate].pop(0) if limits[gate] else None)
    return job


def kill_the_driver(job: Job, next_step: int | None) -> Job:
    """Nothing of the job outlives it; a new one goes on, to the next step that it is held at."""
    job.wait_until_held(job.run.name)
    job.process.kill()
    job.wait()
    assert wait_until_gone(job.temp, GRACE) == []
    job.hold.let_go(job.run.name, next_step)
    return Job.start(job.annotations, job.run, job.temp, "--train.resume", "latest")


def assert_undisturbed(job: Job, reference: Path) -> None:
    assert job.wait() == 0, job.output
    assert_same_end(job.run, reference, besides=DECODED)
    assert wait_until_gone(job.temp, GRACE) == []


@pytest.mark.parametrize("kind", ["training worker", "controller"])
def test_training(
    videos: Path, reference: Path, temp: Path, tmp_path: Path, chance: random.Random, kind: str
) -> None:
    """By the controller Ray Train starts and watches the workers, which die with it."""
    steps = sorted(chance.sample(range(1, STEPS - 2), 3))
    blows = [(kind, step) for step in steps]
    job = start_and_strike(videos, tmp_path / "run", temp, blows, chance)
    assert_undisturbed(job, reference)
    record.note(f"kill -9 of a {kind}", UNHARMED, 3)


@pytest.mark.parametrize("kind", DECODERS)
def test_decoding(
    videos: Path,
    reference: Path,
    temp: Path,
    tmp_path: Path,
    chance: random.Random,
    kind: str,
) -> None:
    # A run's clips are those of 48 windows.
    reads = [first + chance.randrange(8) for first in (0, 14, 28)]
    blows = [(kind, read) for read in reads]
    job = start_and_strike(videos, tmp_path / "run", temp, blows, chance)
    assert_undisturbed(job, reference)
    record.note(f"kill -9 of a {kind}", UNHARMED, 3)


def test_the_driver(
    videos: Path, reference: Path, temp: Path, tmp_path: Path, chance: random.Random
) -> None:
    first, *others = sorted(chance.sample(range(1, STEPS - 2), 3))
    run = tmp_path / "run"
    job = Job.start(videos, run, temp, limits={run.name: first})
    for step in [*others, None]:
        job = kill_the_driver(job, step)
    assert_undisturbed(job, reference)
    record.note("kill -9 of the driver", f"no process left; resumed, {UNHARMED}", 3)
