"""A job through Ray, its processes, and their deaths."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.leftovers import environment_of, own_temp, processes_of, wait_until_gone
from tests.helpers import jobs_run
from tests.helpers.data_videos import moving_frames, write_annotations, write_video
from tests.helpers.hold import Hold

STEPS, SAVE_EVERY = 24, 3

LONGEST = 400.0
"""Seconds for what a test waits for; a few dozen where the cores have nothing else to do."""

GRACE = 30.0
"""Seconds after which nothing of a job may be left whose driver was killed."""


@dataclass
class Job:
    """`python jobs/train.py`, tied to a temporary folder of its own."""

    annotations: Path
    run: Path
    temp: Path
    process: "subprocess.Popen[str]"
    hold: Hold

    @classmethod
    def start(
        cls,
        annotations: Path,
        run: Path,
        temp: Path,
        *more: str,
        limits: Mapping[str, int] | None = None,
        **variables: str,
    ) -> "Job":
        """Begin it, or go on with it: limits of the hold, of which those of before stay."""
        hold = Hold(temp / "hold", **(limits or {}))
        variables = hold.variables | variables
        home = temp / "home"
        home.mkdir(exist_ok=True)
        told = (
            f"--data.annotations {annotations} --train.run-dir {run} --train.max-steps {STEPS}"
            f" --train.checkpoint-every {SAVE_EVERY} --train.validation-every 12"
            " --cluster.max-failures 9"
        )
        tracking = () if "--tracking.uri" in more else ("--tracking.no-enabled",)
        line = [*jobs_run.TINY, *told.split(), *tracking, *more]
        environment = jobs_run.environment(home, **environment_of(temp), **variables)
        with (temp / f"{run.name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "jobs/train.py", *line],
                cwd=jobs_run.REPOSITORY,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return cls(annotations, run, temp, process, hold)

    @property
    def output(self) -> str:
        return (self.temp / f"{self.run.name}.log").read_text()

    def wait(self, seconds: float = LONGEST) -> int:
        """The exit code."""
        return self.process.wait(seconds)

    def find(self, kind: str) -> list[psutil.Process]:
        """Processes of the job of this kind: `KINDS` says how each is known."""
        return [process for process in processes_of(self.temp) if KINDS[kind](process)]

    def kill_one(self, kind: str, chance: random.Random, seconds: float = LONGEST) -> None:
        """SIGKILL for one of this kind, as soon as there is one."""
        end = time.monotonic() + seconds
        while not (found := self.find(kind)):
            assert self.process.poll() is None, f"the job ended early:\n{self.output}"
            assert time.monotonic() < end, f"no {kind} in {seconds} s:\n{self.output}"
            time.sleep(0.05)
        chance.choice(found).kill()

    def wait_until_held(self, gate: str) -> None:
        """Until the job waits at this gate: the name of its run, or `READS`."""
        self._wait_for(lambda: self.hold.waits(gate), f"the {gate} to be held")

    def wait_for_words(self, words: str) -> None:
        """Until the job has said this, while it is running."""
        self._wait_for(lambda: words in self.output, words)

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + LONGEST
        while not condition():
            assert self.process.poll() is None, f"ended, waited for {what}:\n{self.output}"
            late = time.monotonic() > end
            assert not late, f"waited {LONGEST:g} s in vain for {what}:\n{self.output}"
            time.sleep(0.05)


def _is_titled(*titles: str) -> Callable[[psutil.Process], bool]:
    return lambda process: any(title in _line(process) for title in titles)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


KINDS: dict[str, Callable[[psutil.Process], bool]] = {
    "training worker": _is_titled("RayTrainWorker"),
    "controller": _is_titled("ray::TrainController"),
    "decode task": _is_titled("ray::MapBatches", "_decode_block"),
    "decoder": _is_titled("data_pipeline.decoding.sandbox_process"),
}
"""Ray gives its processes the name of what they run."""


def make_videos(folder: Path) -> Path:
    """Large enough for decoding to take a while; the annotation file."""
    folder.mkdir()
    names = [f"{number}.mp4" for number in range(4)]
    for seed, name in enumerate(names):
        write_video(folder / name, moving_frames(40, 360, 640, seed=seed))
    return write_annotations(folder, names)


def undisturbed(videos: Path, run: Path) -> None:
    """A run that nothing happens to, and that leaves nothing behind but Ray's logs."""
    with own_temp() as temp:
        job = Job.start(videos, run, temp)
        assert job.wait() == 0, job.output
        assert wait_until_gone(temp, GRACE) == []
