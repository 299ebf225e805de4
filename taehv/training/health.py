"""The health of a run while it lasts: its rows are watched, and what goes wrong is told early.

`taehv.evaluation.verdict` judges a run that has ended by its users' figures; this is about what a
user would stop or mend a run for. It needs no more than the rows of metrics.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from taehv.training.health_checks import (
    Check,
    Exploding,
    Level,
    MemoryGrowing,
    NotFinite,
    Stagnating,
)

SETTLING_STEPS = 100
"""Steps after the warm-up in which gradients, losses and memory have not settled yet. (The first
100 steps of a usual start do nothing; a good start has norms of 3 to 24 in its first 70.)"""

REMIND_STEPS = 2000
"""A fault that lasts is told again after so many steps."""

RECOVERY_STEPS = 100
"""A fault is over when its check found the run fine throughout so many steps; if it then comes
back, that is told anew."""

SPIKES = 0.01
"""Part of the rows, at least one, that may stick out of a spread: clipping makes a lone spike of
the gradient norm harmless, and one of 24 was seen in a run that went well."""


@dataclass(frozen=True)
class Finding:
    """Something that goes wrong in a run."""

    step: int
    """Of the row that it was found at."""
    name: str
    """What, as a short identifier such as `exploding-loss`."""
    figure: float
    """The number that is beyond its limit; may be not finite."""
    message: str
    """What, the figure, and the limit, in one line."""
    advice: str
    """What to do, in one line that names the options."""
    diverged: bool
    """Whether the run is lost from here on: nothing it does now will mend it."""


class Health:
    """Watches the rows of one run. It depends on them alone, and remembers a bounded number.

    Each fault is told when it begins, again every `REMIND_STEPS` steps while it lasts, and anew
    where it returns after `RECOVERY_STEPS` steps in which all was well.

    Args:
        log_every: steps between rows (`train.log_every`).
        gradient_scale: by which the limits of the gradient norm are multiplied; the norm scales
            with the loss weights (`LossConfig.gradient_scale`). At 0 the norm is not judged.
        warmup_steps: of the learning rate (`optim.warmup_steps`).
        filling_gigabytes: memory that a worker's replay buffer and the cache of the teacher's
            latents take while they fill; that is no leak.
    """

    def __init__(
        self,
        log_every: int,
        gradient_scale: float = 1.0,
        warmup_steps: int = 100,
        filling_gigabytes: float = 1.0,
    ) -> None:
        if log_every < 1:
            raise ValueError(f"log_every is {log_every}: it must be at least 1")
        settling = warmup_steps + SETTLING_STEPS
        checks: list[Check] = [
            NotFinite(),
            Exploding(),
            Stagnating(log_every, settling),
            *(_gradient_levels(log_every, settling, gradient_scale) if gradient_scale else ()),
            MemoryGrowing("gpu", log_every, settling, filling_gigabytes),
            MemoryGrowing("host", log_every, settling, filling_gigabytes),
            *_pace_levels(log_every),
            *_adversary_levels(log_every, settling),
        ]
        self._watched = [(check, _Episode()) for check in checks]
        self._first_step: int | None = None
        self._doubts: set[str] = set()

    def observe(self, row: Mapping[str, Any]) -> list[Finding]:
        """Findings that this row makes worth telling. Rows come in the order of their `step`; a
        metric that a row lacks is passed over."""
        step = int(row["step"])
        if self._first_step is None:
            self._first_step = step
        found = []
        for check, episode in self._watched:
            reading = check.judge(step, step - self._first_step, row)
            if reading is None:
                continue
            if check.diverged:
                self._doubts -= {check.name}
                if reading.fault is not False:
                    self._doubts |= {check.name}
            elif self._doubts:
                # Divergence, which is checked first, would explain the rest.
                continue
            if episode.is_to_tell(step, reading.fault):
                found.append(
                    Finding(
                        step,
                        check.name,
                        reading.figure,
                        reading.message,
                        check.advice,
                        check.diverged,
                    )
                )
        return found

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in the rows of the run's earlier life, whose findings were told then."""
        for row in rows:
            self.observe(row)

    @property
    def in_doubt(self) -> bool:
        """Whether the run has diverged or may be about to: the loss is far too high, but not yet
        for long enough to say so. A checkpoint of now is not one to go back to."""
        return bool(self._doubts)

    @property
    def open_findings(self) -> tuple[str, ...]:
        """Names of the faults that last."""
        return tuple(check.name for check, episode in self._watched if episode.is_open)


class _Episode:
    """One fault, from when it is told until it is over."""

    def __init__(self) -> None:
        self._told_at: int | None = None
        self._fine_since: int | None = None

    @property
    def is_open(self) -> bool:
        return self._told_at is not None

    def is_to_tell(self, step: int, fault: bool | None) -> bool:
        if fault is not False:
            self._fine_since = None
        elif self._fine_since is None:
            self._fine_since = step
        elif step - self._fine_since >= RECOVERY_STEPS:
            self._told_at = None
        if not fault or (self._told_at is not None and step - self._told_at < REMIND_STEPS):
            return False
        self._told_at = step
        return True


def _rows(log_every: int, steps: int, fewest: int) -> int:
    """Rows in so many steps, and no fewer than these."""
    return max(fewest, -(-steps // log_every))


def _spread_without_spikes(values: Iterable[float]) -> float:
    """Standard deviation of all but the largest values."""
    ordered = sorted(values)
    return float(np.std(ordered[: -math.ceil(SPIKES * len(ordered))]))


class _PartOfBest:
    """The median, as a part of the largest median so far."""

    def __init__(self) -> None:
        self._best = 1e-9

    def __call__(self, values: Iterable[float]) -> float:
        level = median(values)
        self._best = max(self._best, level)
        return level / self._best


def _gradient_levels(log_every: int, settling: int, scale: float) -> tuple[Level, ...]:
    """Facts: above 2.0 notable, above 3.0 unstable, deviation over 1,000 steps below 1.0. The
    first two are held against 100 steps, long enough that single batches do not matter."""
    notable, unstable, spread = 2.0 * scale, 3.0 * scale, 1.0 * scale
    level = partial(Level, metric="train/gradient_norm", settling=settling)
    rows = _rows(log_every, 100, fewest=20)
    return (
        level(
            name="notable-gradient-norm",
            what="gradient norm (median) is notable",
            limit=notable,
            clear=0.9 * notable,
            up_to=unstable,
            rows=rows,
            advice="watch it; where it goes on rising, lower --optim.learning-rate",
        ),
        level(
            name="unstable-gradient-norm",
            what="gradient norm (median) marks unstable training",
            limit=unstable,
            clear=0.9 * unstable,
            rows=rows,
            advice="lower --optim.learning-rate, or raise --train.global-batch-size; leave "
            "--optim.gradient-clipping on",
        ),
        level(
            name="gradient-norm-spread",
            what="gradient norm's standard deviation, without lone spikes",
            statistic=_spread_without_spikes,
            limit=spread,
            clear=0.9 * spread,
            rows=_rows(log_every, 1000, fewest=20),
            advice="lower --optim.learning-rate, or raise --train.global-batch-size",
        ),
    )


def _pace_levels(log_every: int) -> tuple[Level, ...]:
    """A median sees neither the wait for the first batches of a run or a resume nor the rows that
    a validation or a checkpoint fell into."""
    return (
        # Rows that vary by 20 % among themselves keep clear of this.
        Level(
            name="falling-throughput",
            metric="train/clips_per_second",
            what="clips per second, as a part of the run's best sustained level",
            statistic=_PartOfBest(),
            limit=0.6,
            clear=0.75,
            rows=_rows(log_every, 200, fewest=20),
            advice="look for other jobs on these machines, and at train/data_wait_fraction: if "
            "that is high, raise --data.clips-per-window or lower --data.decode-cpus",
        ),
        # From 0.3 on, decoding that kept up would make a run nearly a third shorter.
        Level(
            name="data-starvation",
            metric="train/data_wait_fraction",
            what="part of the time (median) that training waits for clips",
            limit=0.3,
            clear=0.2,
            rows=_rows(log_every, 100, fewest=10),
            advice="raise --data.clips-per-window, lower --data.decode-cpus, or add CPUs",
        ),
    )


def _adversary_levels(log_every: int, settling: int) -> tuple[Level, ...]:
    """The discriminator's loss is a squared error against -1 for real and +1 for fake, shown
    equally often: 0 is always right, 1 cannot tell (scores of 0; any guessing costs more), and
    1 - loss is the part of the difference that it sees. Small runs stay at 0.5 to 0.9.

    Two networks take turns in being ahead, so that only a lead over 1,000 steps says something.
    """
    level = partial(Level, rows=_rows(log_every, 1000, fewest=20), settling=settling)
    return (
        # 0.1 over all six maps: even the shallow ones, which see 3x3 pixels, are hardly ever wrong.
        level(
            name="discriminator-wins",
            metric="train/discriminator_loss",
            what="discriminator loss (median; 0: always right, 1: cannot tell)",
            limit=0.1,
            clear=0.15,
            advice="lower --seraena.learning-rate",
        ),
        level(
            name="discriminator-lost",
            metric="train/discriminator_loss",
            what="discriminator loss (median; 0: always right, 1: cannot tell)",
            limit=0.97,
            clear=0.95,
            advice="well if val/sharpness is near 1; else it has collapsed: change "
            "--seraena.learning-rate, or train without it (--loss.seraena 0)",
        ),
        # The mean square of the correction, which was divided by its own spread + 1e-5: near 1
        # within 100 steps in small runs, near 0 where the discriminator is so flat that its
        # gradient has a spread well below 1e-5.
        level(
            name="correction-gone",
            metric="train/seraena_loss",
            what="seraena loss (median), which is the adversary's strength, usually near 1",
            limit=0.05,
            clear=0.1,
            advice="raise --seraena.learning-rate, or save its time with --loss.seraena 0",
        ),
    )
