"""A loss that is no number, in one of two workers."""

import pytest

from taehv.run import checkpoint
from tests.faults import record
from tests.faults.bare_run import FAILED, FINISHED
from tests.faults.bare_setting import STEPS, Setting
from tests.faults.compare import assert_same_end, last_checkpoint, surviving_samples
from tests.faults.lives import run_to_end, start

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

FAULT = "NaN in one of two workers"


def stop_and_go_on(setting: Setting, name: str, step: int, rank: int) -> None:
    """Both workers end before a weight moves, naming the same good checkpoint; without the fault
    the run then ends as if it had not been."""
    assert start(setting.life(name, poison=(step, rank)), 2).wait() == [FAILED] * 2
    good = last_checkpoint(setting.run(name))
    assert checkpoint.step_of(good) == step - step % 2
    for worker in range(2):
        message = (setting.notes(name) / f"error_{worker}.txt").read_text()
        assert f"not finite at step {step}, for sample" in message
        assert f"the last good checkpoint is {good}" in message
        assert (setting.notes(name) / f"weights_{worker}.txt").read_text() == "unmoved"
    run_to_end(setting.life(name), 2)
    assert_same_end(setting.run(name), setting.run("reference"))
    assert surviving_samples(setting.notes(name)) == list(range(8 * STEPS))
    record.note(FAULT, "both stop before a weight moves; resumed, bit for bit as without it")


def roll_back(setting: Setting, name: str, step: int, rank: int) -> None:
    """With on_divergence=rollback the same life reaches the end."""
    life = setting.configured(on_divergence="rollback").life(name, poison=(step, rank))
    assert start(life, 2).wait() == [FINISHED] * 2
    info = checkpoint.read_info(last_checkpoint(setting.run(name)))
    assert (info["step"], info["rollbacks"], info["learning_rate_scale"]) == (STEPS, 1, 0.5)
    for worker in range(2):
        assert (setting.notes(name) / f"weights_{worker}.txt").read_text() == "unmoved"
    record.note(f"{FAULT}, on_divergence=rollback", "the run ends, at half the learning rate")


@pytest.mark.parametrize(("step", "rank"), [(3, 0), (6, 1), (11, 1)])
def test_a_loss_that_is_no_number(setting: Setting, step: int, rank: int) -> None:
    setting.undisturbed(workers=2)
    stop_and_go_on(setting, "stopped", step, rank)
    roll_back(setting, "rolled_back", step, rank)
