"""A run folder on S3, whose store refuses, or hangs, and comes back."""

import time
from collections.abc import Iterator

import pytest

from taehv.run import checkpoint, journal
from taehv.run.run_folder import RunFolder
from tests.faults import record
from tests.faults.bare_run import FINISHED, STEP
from tests.faults.bare_setting import SAVE_EVERY, STEPS, Setting
from tests.faults.compare import assert_same_end, surviving_samples
from tests.faults.lives import LONGEST, run_as_script, wait_until_held
from tests.faults.proxy import Proxy, proxy_to
from tests.helpers.s3_server import S3Server, s3_server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

LONGEST_SAVE = 60.0
"""Seconds that a store which hangs may hold up a step."""


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as made:
        yield made


@pytest.fixture
def proxy(server: S3Server) -> Iterator[Proxy]:
    with proxy_to(server.address) as made:
        yield made


def address_of(server: S3Server, proxy: Proxy, name: str) -> str:
    """Of a new run, by way of the proxy."""
    server.put(f"{name.replace('_', '-')}/bucket", b"")
    return f"s3://{name.replace('_', '-')}/run?endpoint_override={proxy.address}&scheme=http"


def assert_undisturbed(setting: Setting, name: str, address: str) -> None:
    """The run on the store, brought here, is as the reference; its rows are in one file."""
    run = RunFolder(address)
    for part in (checkpoint.FOLDER, journal.NAME, "final_model.safetensors"):
        run.retrieve(part)
    assert_same_end(run.local, setting.run("reference"))
    assert run.entries(journal.PARTS) == []
    assert surviving_samples(setting.notes(name)) == list(range(8 * STEPS))


def away_for_a_while(
    setting: Setting, server: S3Server, proxy: Proxy, how: str, first: int, seconds: float
) -> None:
    """From a step on, for so long, the store refuses or hangs."""
    name = f"{how}_{first}_{seconds:g}"
    address = address_of(server, proxy, name)
    hold = setting.hold(name, step=first)
    life = setting.life(name, run=address, pause=0.3, hold=hold)
    process = run_as_script(life)
    wait_until_held(life, process, STEP)
    {"refuse": proxy.refuse, "hang": proxy.hang}[how]()
    # Not to its end: there a store that is away ends the run.
    hold.let_go(STEP, STEPS - 1)
    time.sleep(seconds)
    proxy.pass_on()
    hold.let_go(STEP)
    back = time.monotonic()
    assert process.wait(LONGEST) == FINISHED
    assert time.monotonic() - back < LONGEST_SAVE
    assert_undisturbed(setting, name, address)
    log = (setting.notes(name) / "log.txt").read_text()
    failed = "saves fail, warned of" if "training goes on (failure" in log else "nothing fails"
    record.note(f"an S3 store that {how}s for a while", f"{failed}; ends bit for bit")


def killed_and_gone_on_with(setting: Setting, server: S3Server, proxy: Proxy, step: int) -> None:
    """A new process, which has nothing but the store, goes on."""
    name = f"killed_{step}"
    address = address_of(server, proxy, name)
    hold = setting.hold(name, step=step)
    life = setting.life(name, run=address, hold=hold)
    process = run_as_script(life)
    wait_until_held(life, process, STEP)
    process.kill()
    process.wait()
    # What it had for its files goes with the next process, or is seen at the end of the test.
    assert run_as_script(setting.life(name, run=address)).wait(LONGEST) == FINISHED
    went_on = "going on from" in (setting.notes(name) / "log.txt").read_text()
    # Nothing is saved before the first of the saves, whose step is noted before it begins.
    assert went_on or step <= SAVE_EVERY
    assert_undisturbed(setting, name, address)
    how = "resumed from the store alone" if went_on else "had saved nothing, begun anew"
    record.note("kill -9 of a run on S3", f"{how}; ends bit for bit")


@pytest.mark.parametrize(
    ("how", "seconds"),
    [("refuse", 3), ("refuse", 8), ("refuse", 12), ("hang", 3), ("hang", 8), ("hang", 25)],
)
def test_a_store_that_is_away(
    setting: Setting, server: S3Server, proxy: Proxy, how: str, seconds: float
) -> None:
    setting.undisturbed()
    away_for_a_while(setting, server, proxy, how, 4, seconds)


@pytest.mark.parametrize("step", [2, 5, 7, 10])
def test_a_process_killed(setting: Setting, server: S3Server, proxy: Proxy, step: int) -> None:
    setting.undisturbed()
    killed_and_gone_on_with(setting, server, proxy, step)
