"""Health checks of a running training, which read nothing but the rows of metrics.jsonl.

They report problems for which a user would stop or change the run. `taehv.evaluation.verdict`, by
contrast, judges the results of a run that has ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from taehv.training.health_checks import Check, Level, MemoryGrowing
from taehv.training.loss_checks import Exploding, NotFinite, Stagnating, StartLost

SETTLING_STEPS = 100
"""Steps after the warm-up in which gradients, losses and memory have not settled yet. (The first
100 steps of a usual start do nothing; a good start has norms of 3 to 24 in its first 70.)"""

REMIND_STEPS = 2000
"""A fault that lasts is reported again after so many steps."""

RECOVERY_STEPS = 100
"""A fault is over when its check has passed for so many steps; it may then be reported anew."""

SPIKE_FRACTION = 0.01
"""Fraction of the rows, at least one, that a standard deviation leaves out: clipping makes a lone
spike of the gradient norm harmless, and one of 24 was seen in a run that went well."""


@dataclass(frozen=True)
class Finding:
    """A problem that a health check found."""

    step: int
    """The step of the row."""
    name: str
    """A short identifier such as `exploding-loss`."""
    figure: float
    """The number that is beyond its limit; may be not finite."""
    message: str
    """The problem, the figure, and the limit, in one line."""
    advice: str
    """What to do, in one line that names the options."""
    diverged: bool
    """Whether the run cannot recover by itself."""


class Health:
    """Runs the checks over the rows of one run. It remembers a bounded number of rows.

    Each fault is reported when it begins, every `REMIND_STEPS` steps while it lasts, and again when
    it returns after `RECOVERY_STEPS` steps without it.

    Args:
        log_every: steps between rows (`train.log_every`).
        gradient_scale: factor on the limits of the gradient norm, which scales with the loss
            weights (`LossConfig.gradient_scale`). At 0 the norm is not checked.
        warmup_steps: of the learning rate (`optim.warmup_steps`).
        filling_gigabytes: memory that the replay buffer and the cache of the teacher's latents
            take while they fill, which is no leak.
        stage_start: the first step of the present stage of the run. Another one has other clips,
            so that its levels say nothing of this one's; divergence and what the start scored do.
    """

    def __init__(
        self,
        log_every: int,
        gradient_scale: float = 1.0,
        warmup_steps: int = 100,
        filling_gigabytes: float = 1.0,
        stage_start: int = 0,
    ) -> None:
        if log_every < 1:
            raise ValueError(f"log_every is {log_every}: it must be at least 1")
        settling = warmup_steps + SETTLING_STEPS
        checks: list[Check] = [
            NotFinite(),
            Exploding(),
            StartLost(),
            Stagnating(log_every, settling),
            *(_gradient_levels(log_every, settling, gradient_scale) if gradient_scale else ()),
            MemoryGrowing("gpu", log_every, settling, filling_gigabytes),
            MemoryGrowing("host", log_every, settling, filling_gigabytes),
            *_pace_levels(log_every),
            *_adversary_levels(log_every, settling),
        ]
        self._checks = [(check, _Episode()) for check in checks]
        self._stage_start = stage_start
        self._first_step: int | None = None
        self._suspected: set[str] = set()
        """Names of the divergence checks that have not passed at their last row."""

    def observe(self, row: Mapping[str, Any]) -> list[Finding]:
        """The findings to report at this row. Rows must come in the order of their `step`; checks
        whose metric a row lacks are skipped."""
        step = int(row["step"])
        if self._first_step is None:
            self._first_step = step
        found = []
        for check, episode in self._checks:
            over_stages = isinstance(check, (NotFinite, Exploding, StartLost))
            begun = self._first_step if over_stages else max(self._first_step, self._stage_start)
            if step < begun:
                continue
            reading = check.judge(step, step - begun, row)
            if reading is None:
                continue
            if check.diverged:
                self._suspected -= {check.name}
                if reading.fault is not False:
                    self._suspected |= {check.name}
            elif self._suspected:
                # Divergence, which is checked first, would explain every other fault.
                continue
            if episode.should_report(step, reading.fault):
                figure, message = reading.figure, reading.message
                finding = Finding(step, check.name, figure, message, check.advice, check.diverged)
                found.append(finding)
        return found

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Observe the rows from before a resume; their findings have been reported already."""
        for row in rows:
            self.observe(row)

    @property
    def divergence_suspected(self) -> bool:
        """Whether the run has diverged, or the loss is far too high but not yet for long enough to
        be sure. A checkpoint of this step would be no good for a rollback."""
        return bool(self._suspected)

    @property
    def open_findings(self) -> tuple[str, ...]:
        """Names of the faults that last."""
        return tuple(check.name for check, episode in self._checks if episode.is_open)


class _Episode:
    """One fault, from its first report until it is over."""

    def __init__(self) -> None:
        self._reported_at: int | None = None
        self._passed_since: int | None = None

    @property
    def is_open(self) -> bool:
        return self._reported_at is not None

    def should_report(self, step: int, fault: bool | None) -> bool:
        if fault is not False:
            self._passed_since = None
        elif self._passed_since is None:
            self._passed_since = step
        elif step - self._passed_since >= RECOVERY_STEPS:
            self._reported_at = None
        if not fault or (self._reported_at is not None and step - self._reported_at < REMIND_STEPS):
            return False
        self._reported_at = step
        return True


def _rows(log_every: int, steps: int, fewest: int) -> int:
    """Rows in so many steps, and no fewer than these."""
    return max(fewest, -(-steps // log_every))


def _spread_without_spikes(values: Iterable[float]) -> float:
    """Standard deviation of all but the largest values."""
    ordered = sorted(values)
    return float(np.std(ordered[: -math.ceil(SPIKE_FRACTION * len(ordered))]))


class _FractionOfBest:
    """The median, as a fraction of the largest median so far."""

    def __init__(self) -> None:
        self._best = 1e-9

    def __call__(self, values: Iterable[float]) -> float:
        level = median(values)
        self._best = max(self._best, level)
        return level / self._best


def _gradient_levels(log_every: int, settling: int, scale: float) -> tuple[Level, ...]:
    """Users' limits: above 2.0 notable, above 3.0 unstable, deviation over 1,000 steps below 1.0.
    The first two are compared with 100 steps, long enough that single batches do not matter."""
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
    """A median ignores the wait for the first batches of a run or a resume, and the rows with a
    validation or a checkpoint in them."""
    return (
        # Noise of 20 % between rows does not reach this limit.
        Level(
            name="falling-throughput",
            metric="train/clips_per_second",
            what="clips per second, as a part of the run's best sustained level",
            statistic=_FractionOfBest(),
            limit=0.6,
            clear=0.75,
            rows=_rows(log_every, 200, fewest=20),
            advice="look for other jobs on these machines, and at train/data_wait_fraction: if "
            "that is high, raise --data.clips-per-window or lower --data.decode-cpus",
        ),
        # From 0.3 on, faster decoding would make the run nearly a third shorter.
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
    """The discriminator's loss is a squared error against -1 for real and +1 for fake, which come
    equally often. It is 0 for a discriminator that is always right and 1 for one that always scores
    0 because it cannot tell them apart. Small runs stay at 0.5 to 0.9.

    Now one and now the other network is ahead, so the median is taken over 1,000 steps.
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
