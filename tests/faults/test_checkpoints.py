"""A stop in the middle of a save, and checkpoints that are damaged afterwards."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder
from tests.faults import record
from tests.faults.bare_run import SAVE, STEP, STOPPED
from tests.faults.bare_setting import STEPS, Setting
from tests.faults.compare import assert_same_end, last_checkpoint, surviving_samples
from tests.faults.lives import run_to_end, saved_steps, start, wait_until_held

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def flip(file: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file: Path) -> None:
    """To its first half."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flip": flip,
    "truncate": truncate,
    "remove": Path.unlink,
}


def stop_during_a_save(setting: Setting, name: str, workers: int) -> None:
    """SIGTERM while a checkpoint's files are being written: it is finished, and one more is."""
    step = setting.chance.choice([2, 4, 6])
    hold = setting.hold(name, save=0)
    life = setting.life(name, hold=hold, held_save=step)
    group = start(life, workers)
    target = setting.run(name) / checkpoint.name_of(step)
    manifest = target / checkpoint.MANIFEST
    wait_until_held(life, group, SAVE)
    assert any(target.glob("*.safetensors"))
    group.stop()
    assert not manifest.exists()
    hold.let_go(SAVE)
    assert group.wait() == [STOPPED] * workers
    assert checkpoint.find_fault(last_checkpoint(setting.run(name))) is None
    assert last_checkpoint(setting.run(name)).name == Path(saved_steps(setting.run(name))[0]).name
    run_to_end(setting.life(name), workers)
    assert surviving_samples(setting.notes(name)) == list(range(8 * STEPS))


def stop_early(setting: Setting, name: str) -> Path:
    """A run that has ended after its third checkpoint; its folder."""
    # At the latest when the fourth one begins, the third is whole.
    life = setting.life(name, hold=setting.hold(name, step=9))
    group = start(life)
    wait_until_held(life, group, STEP)
    group.kill()
    group.wait()
    assert (setting.run(name) / checkpoint.name_of(6) / checkpoint.MANIFEST).exists()
    for later in saved_steps(setting.run(name)):
        if later > checkpoint.name_of(6):
            checkpoint.remove(RunFolder(str(setting.run(name))), later)
    return setting.run(name)


def go_on_after_damage(setting: Setting, stopped: Path, file: str, damage: str) -> None:
    """The damage is named, the run goes on from the checkpoint before, and ends in the same."""
    name = f"{damage}_{file}"
    run = setting.run(name)
    shutil.copytree(stopped, run)
    shutil.copytree(setting.notes(stopped.name), setting.notes(name))
    DAMAGES[damage](run / checkpoint.name_of(6) / file)
    run_to_end(setting.life(name))
    log = (setting.notes(name) / "log.txt").read_text()
    (line,) = [line for line in log.splitlines() if "is passed over" in line]
    assert f"{run}/{checkpoint.name_of(6)} is passed over" in line
    assert file.removesuffix(".json") in line
    assert f"going on from {run / checkpoint.name_of(4)}, step 4" in log
    assert_same_end(run, setting.run("reference"))
    assert surviving_samples(setting.notes(name)) == list(range(8 * STEPS))
    record.note(f"a checkpoint's file: {damage}", "named, passed over; bit for bit as without it")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_during_a_save(setting: Setting, workers: int) -> None:
    setting.undisturbed(workers=workers)
    for number in range(3):
        stop_during_a_save(setting, f"stopped_{number}", workers)
        assert_same_end(setting.run(f"stopped_{number}"), setting.run("reference"))
        record.note("SIGTERM during a save", "both saves whole; resumed, bit for bit")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_each_file_of_a_checkpoint(setting: Setting, damage: str) -> None:
    setting.undisturbed()
    stopped = stop_early(setting, "stopped")
    files = sorted(path.name for path in (stopped / checkpoint.name_of(6)).iterdir())
    assert len(files) == 8
    for file in files:
        go_on_after_damage(setting, stopped, file, damage)
