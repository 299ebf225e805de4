"""A disk that is full for a while, and one that stays full."""

import time
from collections.abc import Callable

import pytest

from taehv.run import checkpoint
from tests.faults import record
from tests.faults.bare_run import FAILED, FINISHED, STEP, Life
from tests.faults.bare_setting import SAVE_EVERY, STEPS, Setting
from tests.faults.compare import assert_same_end, last_checkpoint, surviving_samples
from tests.faults.disk import small_disk
from tests.faults.lives import Workers, run_to_end, saved_steps, start, wait_until_held

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

MEGABYTES = 64


def hold_after_save(life: Life, group: Workers, step: int, saved: Callable[[], bool]) -> None:
    """Until a life that is held at `step` has saved, and is held again."""
    assert life.hold is not None
    wait_until_held(life, group, STEP)
    while not saved():
        step += 1
        life.hold.let_go(STEP, step)
        wait_until_held(life, group, STEP)
        # What a step has told the saving thread to write may be there in a moment.
        moment = time.monotonic() + 1
        while not saved() and time.monotonic() < moment:
            time.sleep(0.01)


def full_for_a_while(setting: Setting, first: int, last: int) -> None:
    """Full from one step to another: warnings, no end, and what is written later is good."""
    name = f"full_{first}_{last}"
    with small_disk(setting.folder / f"disk_{name}", MEGABYTES) as disk:
        run = disk.folder / "run"
        hold = setting.hold(name, step=first)
        life = setting.life(name, run=str(run), hold=hold)
        group = start(life)
        wait_until_held(life, group, STEP)
        disk.fill()
        hold.let_go(STEP, last)
        wait_until_held(life, group, STEP)
        disk.empty()
        hold.let_go(STEP)
        assert group.wait() == [FINISHED]
        log = (setting.notes(name) / "log.txt").read_text()
        assert "training goes on (failure 1 of 3 in a row)" in log
        assert_same_end(run, setting.run("reference"))
        assert surviving_samples(setting.notes(name)) == list(range(8 * STEPS))
    record.note("a disk full for a while", "saves fail, warned of; the run ends bit for bit")


def full_for_good(setting: Setting, first: int) -> None:
    """The run stops, naming the last good checkpoint, which is good; with room it goes on."""
    name = f"full_{first}"
    setting = setting.configured(max_failed_saves=1)
    with small_disk(setting.folder / f"disk_{name}", MEGABYTES) as disk:
        run = disk.folder / "run"
        hold = setting.hold(name, step=first)
        life = setting.life(name, run=str(run), hold=hold)
        group = start(life)
        hold_after_save(life, group, first, lambda: any(run.glob(f"*/*/{checkpoint.MANIFEST}")))
        disk.fill()
        hold.let_go(STEP)
        assert group.wait() == [FAILED]
        message = (setting.notes(name) / "error_0.txt").read_text()
        good = last_checkpoint(run)
        assert f"the last good one is the one of step {checkpoint.step_of(good)}" in message
        assert "2 saves in a row have failed, more than train.max_failed_saves (1)" in message
        disk.empty()
        run_to_end(setting.life(name, run=str(run)))
        assert_same_end(run, setting.run("reference_one_failure"))
        assert surviving_samples(setting.notes(name)) == list(range(8 * STEPS))
    record.note("a disk full for good", "stops, naming a good checkpoint; bit for bit once freed")


def failures_in_a_row(setting: Setting) -> None:
    """More saves fail than checkpoints are kept, and the run stops. With room it goes on, and what
    it then saves first is there when it is killed right after."""
    name = "failures_in_a_row"
    with small_disk(setting.folder / f"disk_{name}", MEGABYTES) as disk:
        run = disk.folder / "run"
        hold = setting.hold(name, step=SAVE_EVERY)
        life = setting.life(name, run=str(run), hold=hold)
        group = start(life)
        hold_after_save(
            life, group, SAVE_EVERY, lambda: any(run.glob(f"*/*/{checkpoint.MANIFEST}"))
        )
        disk.fill()
        hold.let_go(STEP)
        assert group.wait() == [FAILED]
        message = (setting.notes(name) / "error_0.txt").read_text()
        failures, kept = 4, setting.config.train.keep_checkpoints
        assert f"{failures} saves in a row have failed" in message
        assert failures > kept
        good = last_checkpoint(run)
        assert saved_steps(run) == [f"{checkpoint.FOLDER}/{good.name}"]

        disk.empty()
        step = checkpoint.step_of(good) + SAVE_EVERY
        first = checkpoint.step_folder(run, step)
        hold.let_go(STEP, step)
        group = start(life)
        hold_after_save(life, group, step, (first / checkpoint.MANIFEST).exists)
        group.kill()
        group.wait()
        assert checkpoint.find_fault(good) is None
        assert checkpoint.find_fault(first) is None
        run_to_end(setting.life(name, run=str(run)))
        assert_same_end(run, setting.run("reference"))
        assert surviving_samples(setting.notes(name)) == list(range(8 * STEPS))
    record.note(
        "failures in a row, then a resume", "the first save is whole; bit for bit at the end"
    )


@pytest.mark.parametrize(("first", "last"), [(1, 4), (3, 8), (5, 10)])
def test_a_disk_full_for_a_while(setting: Setting, first: int, last: int) -> None:
    setting.undisturbed()
    full_for_a_while(setting, first, last)


@pytest.mark.parametrize("first", [3, 6, 9])
def test_a_disk_full_for_good(setting: Setting, first: int) -> None:
    setting.configured(max_failed_saves=1).undisturbed("reference_one_failure")
    full_for_good(setting, first)


def test_failures_in_a_row_and_then_a_resume(setting: Setting) -> None:
    setting.undisturbed()
    failures_in_a_row(setting)
