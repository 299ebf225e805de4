"""Short forms of the suite in tests/faults: one or two strikes of each kind."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import test_checkpoints, test_disk, test_kills, test_numbers, test_store
from tests.faults.bare_setting import STEPS, Setting, bare_setting
from tests.faults.compare import assert_losses_agree
from tests.faults.job import make_videos, undisturbed
from tests.faults.leftovers import own_temp
from tests.faults.proxy import proxy_to
from tests.faults.test_ray_kills import assert_undisturbed as assert_job_undisturbed
from tests.faults.test_ray_kills import start_and_strike
from tests.helpers.s3_server import s3_server


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """One worker, with the run that nothing happened to."""
    with bare_setting(tmp_path_factory.mktemp("alone")) as setting:
        setting.undisturbed()
        yield setting


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """Two workers, with the run that nothing happened to."""
    with bare_setting(tmp_path_factory.mktemp("pair")) as setting:
        setting.undisturbed(workers=2)
        yield setting


def test_a_process_killed(alone: Setting) -> None:
    assert test_kills.kill_until_done(alone, "killed", most=3) > 0
    test_kills.assert_undisturbed(alone, "killed", "reference")


def test_one_of_two_workers_killed(pair: Setting) -> None:
    assert test_kills.kill_until_done(pair, "killed", most=1, workers=2) > 0
    test_kills.assert_undisturbed(pair, "killed", "reference")


def test_another_number_of_workers(pair: Setting) -> None:
    test_kills.resize(pair, "resized", [2, 1])
    steps = range(1, STEPS + 1)
    assert_losses_agree(pair.run("resized"), pair.run("reference"), steps, 1e-3)


def test_a_loss_that_is_no_number(pair: Setting) -> None:
    test_numbers.stop_and_go_on(pair, "stopped", step=5, rank=1)


def test_a_stop_during_a_save(alone: Setting) -> None:
    test_checkpoints.stop_during_a_save(alone, "stopped_saving", workers=1)


@pytest.mark.parametrize(
    ("damage", "file"), [("flip", "ema.safetensors"), ("truncate", "manifest.json")]
)
def test_a_damaged_checkpoint(alone: Setting, damage: str, file: str) -> None:
    stopped = alone.run("stopped")
    if not stopped.exists():
        test_checkpoints.stop_early(alone, "stopped")
    test_checkpoints.go_on_after_damage(alone, stopped, file, damage)


def test_a_full_disk(alone: Setting) -> None:
    test_disk.full_for_a_while(alone, 3, 8)


def test_failures_in_a_row_and_then_a_resume(alone: Setting) -> None:
    test_disk.failures_in_a_row(alone)


def test_a_store_that_refuses(alone: Setting) -> None:
    with s3_server() as server, proxy_to(server.address) as proxy:
        test_store.away_for_a_while(alone, server, proxy, "refuse", 4, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_through_ray(tmp_path: Path) -> None:
    """A decoder, a decode task and a training worker, in one run."""
    videos = make_videos(tmp_path / "videos")
    undisturbed(videos, tmp_path / "reference")
    chance = random.Random(0)
    with own_temp(may_leave_folders=True) as temp:
        blows = [("decoder", 2), ("decode task", 16), ("training worker", 5)]
        job = start_and_strike(videos, tmp_path / "run", temp, blows, chance)
        assert_job_undisturbed(job, tmp_path / "reference")
