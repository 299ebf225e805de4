"""Training for a given time, by the project's own loop, with the averaged weights at a ladder of
times.

`taehv.training.train` stops at each rung by a hook, saves a checkpoint, and goes on from it, which
gives the very weights of training in one go. What is counted is the start, where it is solved, with
the decoding of its clips, and the steps: no validation, no saving, no wait for clips.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.machine import CLOCKS
from jobs.cli.config import Config
from taehv.interfaces import Data, Hooks
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder
from taehv.training import train
from taehv.training.start import prepare_start

LADDER = (1 / 8, 1 / 4, 1 / 2, 1)
"""Parts of the time after which the network is scored."""

FIRST_STEPS = 9
"""Steps of a training that is thrown away, from which the first guess of their number is taken, by
their median: SOAP renews its bases after some of the first, and then hardly ever."""

SPARE_STEPS = 1.05
"""The learning rate falls over so many times the steps that are expected, so that time ends the
training even where the machine turns out faster. A cosine is down by 99.4 % there."""


@dataclass(frozen=True)
class Rung:
    """Where a training stands after some time."""

    seconds: float
    """That were spent on the start and on steps."""
    steps: int
    weights: Path
    """The averaged ones, until the training goes on."""
    max_steps: int
    """Over which the learning rate falls, as estimated on the way here."""


def train_by_time(
    config: Config, data: Data, seconds: float, clock: str, folder: Path
) -> Iterator[Rung]:
    """Train for `seconds`, and stop at each rung of `LADDER`.

    `train.max_steps` of the configuration is of no account: the learning rate falls over the steps
    that are made in this time, whose number is estimated anew at each rung.

    folder: for checkpoints; it should be empty.
    Raises DivergedError, DataError, and whatever else training raises.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        first = _Timer(seconds * LADDER[0], clock, most_steps=FIRST_STEPS)
        run = RunFolder(name)
        quick = replace(config, train=replace(config.train, start="near_identity"))
        train(_with_steps(quick, FIRST_STEPS), data, first, run)
    run = RunFolder(str(folder))
    begun = CLOCKS[clock]()
    # Training finds it in the folder. A teacher would have to be loaded, which is not counted.
    if not config.teacher.path:
        prepare_start(config, data, run, teacher=None)
    started = spent = CLOCKS[clock]() - begun
    steps, resume_from = 0, None
    pace = first.pace
    for part in LADDER:
        timer = _Timer(part * seconds - spent, clock)
        max_steps = steps + max(1, math.ceil(SPARE_STEPS * (seconds - spent) / pace))
        summary = train(_with_steps(config, max_steps), data, timer, run, resume_from)
        spent, steps = spent + timer.seconds, summary.step
        pace = (spent - started) / steps
        newest = checkpoint.latest_valid(run)
        assert newest is not None
        resume_from = run.retrieve(newest)
        yield Rung(spent, steps, resume_from / "ema.safetensors", max_steps)


class _Timer(Hooks):
    """Counts the time of steps, and stops with the one whose end is nearest to `seconds`."""

    def __init__(self, seconds: float, clock: str, most_steps: int = 0) -> None:
        """most_steps: stop after so many in any case; 0: no limit."""
        self._limit, self._most_steps = seconds, most_steps
        self._clock: Callable[[], float] = CLOCKS[clock]
        self._taken: list[float] = []
        self._begun = 0.0

    @property
    def steps(self) -> int:
        return len(self._taken)

    @property
    def seconds(self) -> float:
        """Of all steps. The first, which warms up what training in one go has warm, counts for no
        more than the median of all."""
        if not self._taken:
            return 0.0
        first, *others = self._taken
        return min(first, self.pace) + sum(others)

    @property
    def pace(self) -> float:
        """The median time of a step."""
        return statistics.median(self._taken)

    def should_stop(self) -> bool:
        # Asked right before a step, which is made all the same.
        expected = self.pace if self._taken else 0.0
        stops = self.seconds + 1.5 * expected >= self._limit or self.steps + 1 == self._most_steps
        self._begun = self._now()
        return stops

    def on_step(self, step: int, samples: Sequence[int]) -> None:
        self._taken.append(self._now() - self._begun)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._clock()


def _with_steps(config: Config, max_steps: int) -> Config:
    """For so many steps, and with nothing but steps."""
    never = 10**9
    return replace(
        config,
        train=replace(
            config.train,
            max_steps=max_steps,
            validation_every=never,
            validation_clips=1,
            sample_clips=0,
            checkpoint_every=never,
            keep_checkpoints=1,
            early_stopping_validations=0,
        ),
    )
