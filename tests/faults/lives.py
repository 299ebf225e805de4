"""The test's side of a bare run: it starts lives, ends them, and waits for them."""

import multiprocessing
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder
from tests.faults.bare_run import FINISHED, Life, live
from tests.helpers.jobs_run import REPOSITORY

LONGEST = 240.0
"""Seconds; a life that takes longer hangs."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.faults.preload"])


@dataclass
class Workers:
    """The processes of one life."""

    processes: list[BaseProcess]
    rendezvous: "tempfile.TemporaryDirectory[str]" = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="rendezvous-")
    )

    def kill(self, rank: int = 0) -> None:
        """SIGKILL for one of them."""
        self.processes[rank].kill()

    def stop(self) -> None:
        """SIGTERM for all."""
        for process in self.processes:
            process.terminate()

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait(self, seconds: float = LONGEST) -> list[int | None]:
        """Exit codes, once all have ended. Those that do not are killed, and fail the test."""
        late = self._end(seconds)
        assert not late, f"workers {late} did not end in {seconds} s"
        return self.codes

    def wait_or_end(self, seconds: float) -> list[int]:
        """The ranks that had to be killed, since they were not gone after so long."""
        return self._end(seconds)

    @property
    def codes(self) -> list[int | None]:
        """Exit codes, as far as they have ended."""
        return [process.exitcode for process in self.processes]

    def _end(self, seconds: float) -> list[int]:
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in late:
            self.kill(rank)
            self.processes[rank].join()
        self.rendezvous.cleanup()
        return late


def start(life: Life, workers: int = 1) -> Workers:
    """Begin a life, in processes forked from one that has imported everything."""
    life.notes.mkdir(parents=True, exist_ok=True)
    group = Workers([])
    store = str(Path(group.rendezvous.name) / "store")
    for rank in range(workers):
        process = _FORKS.Process(target=live, args=(life, rank, workers, store))
        process.start()
        group.processes.append(process)
    return group


def run_to_end(life: Life, workers: int = 1) -> None:
    """A life that nothing disturbs."""
    assert start(life, workers).wait() == [FINISHED] * workers


def run_as_script(life: Life) -> "subprocess.Popen[bytes]":
    """A life in a fresh interpreter, which cleans up after itself when it ends."""
    life.notes.mkdir(parents=True, exist_ok=True)
    file = life.notes / "life.pickle"
    file.write_bytes(pickle.dumps(life))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.bare_run", str(file)], cwd=REPOSITORY
    )


def wait_until(condition: Callable[[], bool], what: str, workers: Workers) -> bool:
    """Whether `condition` came true before the workers ended."""
    end = time.monotonic() + LONGEST
    while not condition():
        if not workers.alive:
            return condition()
        assert time.monotonic() < end, f"waited {LONGEST:g} s in vain for {what}"
        time.sleep(0.002)
    return True


def wait_until_held(life: Life, running: "Workers | subprocess.Popen[bytes]", gate: str) -> None:
    """Until the life waits at this gate."""
    assert life.hold is not None
    end = time.monotonic() + LONGEST
    while not life.hold.waits(gate):
        alive = running.alive if isinstance(running, Workers) else running.poll() is None
        assert alive, f"the life was over before its {gate} was held; {_last_lines(life)}"
        late = time.monotonic() > end
        assert not late, f"no {gate} was held in {LONGEST:g} s; {_last_lines(life)}"
        time.sleep(0.002)


def _last_lines(life: Life) -> str:
    log = life.notes / "log.txt"
    lines = log.read_text().splitlines()[-20:] if log.exists() else ["nothing"]
    return "\n".join(["the last that it said:", *lines])


def wait_for_a_moment(workers: Workers, folder: Path, chance: random.Random) -> None:
    """Until some moment of a life: by the clock, or about when a checkpoint is written."""
    if chance.random() < 0.5:
        moment = time.monotonic() + chance.uniform(0.0, 2.5)
        wait_until(lambda: time.monotonic() > moment, "a moment", workers)
        return
    before = saved_steps(folder)
    wait_until(lambda: saved_steps(folder) != before, "the next checkpoint", workers)
    time.sleep(chance.uniform(0.0, 0.08))


def saved_steps(folder: Path) -> list[str]:
    """The checkpoints of a run, finished or not."""
    return checkpoint.names(RunFolder(str(folder)))


def unfinished_saves(folder: Path) -> int:
    """How many of a run's checkpoints are not whole."""
    return sum(checkpoint.find_fault(folder / name) is not None for name in saved_steps(folder))
