"""SIGKILL, at random moments, of a run without Ray: of its process, or of one of two workers."""

import dataclasses

import pytest
import torch

from taehv.run import checkpoint
from tests.faults import record
from tests.faults.bare_run import FINISHED, STEP
from tests.faults.bare_setting import SAVE_EVERY, STEPS, Setting
from tests.faults.compare import (
    assert_equal,
    assert_losses_agree,
    assert_same_end,
    last_checkpoint,
    state,
    surviving_samples,
    tensors,
)
from tests.faults.lives import (
    run_to_end,
    start,
    unfinished_saves,
    wait_for_a_moment,
    wait_until_held,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

EVERY_SAMPLE = list(range(8 * STEPS))


def kill_until_done(setting: Setting, name: str, most: int, workers: int = 1) -> int:
    """Kill one worker of each life of the run, `most` times at most; how many times it was."""
    fault = f"kill -9 of {'the process' if workers == 1 else 'one of two workers'}"
    # The first life cannot be over before it is struck; later ones may end under the blow.
    hold = setting.hold(name, step=STEPS - 1)
    life = setting.life(name, pause=0.05, hold=hold)
    kills = 0
    while True:
        group = start(life, workers)
        if kills == most:
            assert group.wait() == [FINISHED] * workers
            return kills
        wait_for_a_moment(group, setting.run(name), setting.chance)
        group.kill(setting.chance.randrange(workers))
        hold.let_go(STEP)
        # The other one fails at its next collective; only one that still waits for the dead to
        # join would wait for long.
        ended = group.wait_or_end(10)
        if group.codes == [FINISHED] * workers:
            return kills
        kills += 1
        torn = unfinished_saves(setting.run(name))
        outcome = "resumed" + (", an unfinished save passed over" if torn else "")
        record.note(fault, outcome + (", the other one ended by force" if ended else ""))


def assert_undisturbed(setting: Setting, name: str, reference: str) -> None:
    """Bit for bit as the reference, each sample used once."""
    assert_same_end(setting.run(name), setting.run(reference))
    assert surviving_samples(setting.notes(name)) == EVERY_SAMPLE


def test_a_process_killed_at_random_moments(setting: Setting) -> None:
    setting.undisturbed()
    kills = runs = 0
    while kills < 24:
        name = f"killed_{runs}"
        kills += kill_until_done(setting, name, most=6)
        assert_undisturbed(setting, name, "reference")
        runs += 1
    record.note("... the runs so disturbed", "end bit for bit as the undisturbed one", runs)


def test_one_of_two_workers_killed(setting: Setting) -> None:
    setting.undisturbed(workers=2)
    kills = runs = 0
    while kills < 20:
        name = f"killed_{runs}"
        kills += kill_until_done(setting, name, most=5, workers=2)
        assert_undisturbed(setting, name, "reference")
        runs += 1
    record.note("... the runs so disturbed", "end bit for bit as the undisturbed one", runs)


def resize(setting: Setting, name: str, counts: list[int], in_double: bool = False) -> None:
    """Kill a run after a few steps and go on with another number of workers, again and again.

    What the new workers hold before their first step is gathered and compared with the checkpoint
    that they go on from, bit for bit.
    """
    run, hold = setting.run(name), setting.hold(name)
    for number, workers in enumerate(counts):
        if number:
            gathered = f"{name}_gathered_{number}"
            copying = setting.life(name, in_double=in_double, copy_to=str(setting.run(gathered)))
            run_to_end(copying, workers)
            ours = last_checkpoint(setting.run(gathered))
            assert ours.name == last_checkpoint(run).name
            assert_equal(state(ours), state(last_checkpoint(run)))
            record.note("number of workers changed", "state gathered after it bit for bit")
        saved = 4 * (number + 1)
        last = number == len(counts) - 1
        # A checkpoint is whole, at the latest, when the next one begins.
        hold.let_go(STEP, None if last else saved + SAVE_EVERY + 1)
        life = setting.life(name, in_double=in_double, hold=hold)
        group = start(life, workers)
        if last:
            assert group.wait() == [FINISHED] * workers
            return
        wait_until_held(life, group, STEP)
        assert (run / checkpoint.name_of(saved) / checkpoint.MANIFEST).exists()
        group.kill(workers - 1)
        # The main worker notices the loss when it goes on.
        hold.let_go(STEP)
        group.wait_or_end(10)


def test_another_number_of_workers_after_a_kill(setting: Setting) -> None:
    setting.undisturbed(workers=2)
    resize(setting, "resized", [2, 1, 2])
    assert_losses_agree(setting.run("resized"), setting.run("reference"), range(1, STEPS + 1), 1e-3)
    assert surviving_samples(setting.notes("resized")) == EVERY_SAMPLE
    record.note("... losses of all steps", "as without the changes, to 1e-3")


def test_in_double_the_number_of_workers_does_not_show(setting: Setting) -> None:
    config = setting.config
    optim = dataclasses.replace(config.optim, gradient_clipping=0.0, zero_stage=0)
    setting = dataclasses.replace(setting, config=dataclasses.replace(config, optim=optim))
    setting.undisturbed(workers=2, in_double=True)
    resize(setting, "resized", [2, 1, 2], in_double=True)
    ours, theirs = (
        tensors(last_checkpoint(setting.run(name))) for name in ("resized", "reference")
    )
    weights = [key for key in theirs if key.startswith(("generator.", "discriminator.", "ema."))]
    assert weights
    assert {theirs[key].dtype for key in weights} == {torch.float64, torch.int64}
    worst = max(float((ours[key] - theirs[key]).abs().max()) for key in weights)
    assert worst < 1e-9
    record.note("... in float64", f"final weights as without the changes, to {worst:.0e}")
