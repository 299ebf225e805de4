"""The checks that `taehv.training.health.Health` runs over a run's rows.

Each check remembers a bounded number of rows. For a row it returns a `Reading`, or None if the row
lacks its metric or there are too few rows yet. "Users' limit" marks a figure by which the users
judge a run; any other limit has its reason beside it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median, median_low
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]

ROLLBACK_ADVICE = (
    "go on from a checkpoint before this (--train.resume) with a lower --optim.learning-rate, or "
    "let --train.on-divergence rollback do both"
)


@dataclass(frozen=True)
class Reading:
    """The result of a check at one row."""

    figure: float
    fault: bool | None
    """None: undecided, being close to the limit, or beyond it but not yet for long enough."""
    message: str
    """The problem, the figure, and the limit, in one line."""


class Check(Protocol):
    """The attributes are those of `taehv.training.health.Finding`."""

    name: str
    advice: str
    diverged: bool
    """Whether a fault means divergence; an undecided reading then means a suspected one."""

    def judge(self, step: int, age: int, row: Row) -> Reading | None:
        """Called for every row, in order; `age` is the number of steps since the first row."""


def value_of(row: Row, metric: str) -> float | None:
    """The metric in this row; None if it is missing or not finite (`NotFinite` checks that)."""
    value = row.get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


class NotFinite:
    """A loss or the gradient norm is not finite. The loop refuses such a loss before the weights
    move, but after a step with such a gradient norm they may not be finite either."""

    name = "not-finite"
    advice = ROLLBACK_ADVICE
    diverged = True

    def judge(self, step: int, age: int, row: Row) -> Reading | None:
        judged = False
        for name, value in row.items():
            if name.startswith("train/") and name.endswith(("loss", "norm")) and value is not None:
                judged = True
                if not math.isfinite(value):
                    return Reading(value, True, f"{name} is {value}: not finite")
        return Reading(0.0, False, "") if judged else None


class Exploding:
    """The reconstruction loss stays far above its lowest level so far, the level being the median
    of the last rows. So a slow divergence is found like a sudden one. (Seraena's loss is not
    checked: it rises in healthy training.)
    """

    name = "exploding-loss"
    advice = ROLLBACK_ADVICE
    diverged = True

    FACTOR = 4.0
    """6 dB of PSNR lost, where batches vary by 20 to 30 %; leaves room for what the warm-up may
    cost pretrained weights."""
    LEVEL_ROWS, MIN_ROWS = 50, 10
    STREAK_ROWS, STREAK_STEPS = 5, 20
    """Rows in a row, and the steps they span: Adam recovers from shorter spikes by itself."""

    def __init__(self) -> None:
        self._recent = deque[float](maxlen=self.LEVEL_ROWS)
        self._lowest = math.inf
        self._streak_rows = self._streak_start = 0

    def judge(self, step: int, age: int, row: Row) -> Reading | None:
        loss = value_of(row, "train/reconstruction_loss")
        if loss is None:
            return None
        if len(self._recent) >= self.MIN_ROWS:
            self._lowest = min(self._lowest, median(self._recent))
        self._recent.append(loss)
        if not loss > self.FACTOR * self._lowest:
            self._streak_rows = 0
            return Reading(loss, False, "")
        if not self._streak_rows:
            self._streak_start = step
        self._streak_rows += 1
        long = step - self._streak_start >= self.STREAK_STEPS
        return Reading(
            loss,
            (long and self._streak_rows >= self.STREAK_ROWS) or None,
            f"reconstruction loss {loss:.3g} is {loss / self._lowest:.1f} x its lowest level, "
            f"{self._lowest:.3g}, since step {self._streak_start}; limit {self.FACTOR:g} x",
        )


class Stagnating:
    """The reconstruction loss does not fall, though it is not low enough yet.

    Users' limit: the slope of its moving average should be negative. Where progress is slow, noise
    decides that sign, so the fall is fitted (least squares on the logarithm) over the last third of
    the run so far, and it is a fault only if the fall plus three standard errors stays below
    `MIN_FALL`: noise delays a report and causes none. Since the stretch grows with the run, a loss
    that falls ever more slowly, as a power of the step, is healthy at any age.
    """

    name = "stagnating-loss"
    advice = (
        "try another --optim.learning-rate (lower if the gradient norm is high), a lower "
        "--loss.seraena, or wider --model.decoder-widths"
    )
    diverged = False

    GOOD_ENOUGH = 0.005
    """Users' limit: an MSE below this is a success. A plateau there is convergence."""
    MIN_FALL = 0.05
    """Over the stretch; about 1.2 dB for ten times as many steps. Runs that go well gain 3 dB."""
    ERRORS = 3.0
    """Standard errors of the fitted fall. With 2, of 20 simulated runs that gained 3 dB for ten
    times as many steps, in batches that vary by 30 %, 6 were called stagnating at some time."""
    STRETCH_FRACTION, MIN_STRETCH = 1 / 3, 500
    """The stretch is this fraction of the run so far, and at least so many steps."""
    BLOCK_STEPS, MIN_BLOCKS, MAX_BLOCKS = 10, 30, 1000
    """Rows closer than a block are averaged first, which bounds memory and work."""

    def __init__(self, log_every: int, settling: int) -> None:
        self._block_rows = -(-self.BLOCK_STEPS // log_every)
        self._block_steps = self._block_rows * log_every
        self._settling = settling
        self._block: list[float] = []
        self._logs = deque[float](maxlen=self.MAX_BLOCKS)

    def judge(self, step: int, age: int, row: Row) -> Reading | None:
        loss = value_of(row, "train/reconstruction_loss")
        if loss is None or age <= self._settling:
            return None
        self._block.append(loss)
        if len(self._block) < self._block_rows:
            return None
        self._logs.append(math.log(max(1e-12, sum(self._block) / len(self._block))))
        self._block = []
        blocks = max(self.MIN_STRETCH, self.STRETCH_FRACTION * age) / self._block_steps
        wanted = min(self.MAX_BLOCKS, max(self.MIN_BLOCKS, math.ceil(blocks)))
        if len(self._logs) < wanted:
            return None
        logs = np.array(self._logs)[-wanted:]
        fall, error = fitted_fall(logs)
        level, change = math.exp(logs.mean()), math.expm1(-fall)
        stretch = wanted * self._block_steps
        fault: bool | None = None
        if level < self.GOOD_ENOUGH or fall > self.MIN_FALL:
            fault = False
        elif fall + self.ERRORS * error < self.MIN_FALL:
            fault = True
        return Reading(
            change,
            fault,
            f"reconstruction loss {level:.3g} changed by {change:+.1%} in {stretch} steps; "
            f"wanted -{self.MIN_FALL:.0%}, or a loss below {self.GOOD_ENOUGH:g}",
        )


def fitted_fall(logs: NDArray[np.float64]) -> tuple[float, float]:
    """How far a straight line through `logs` falls from end to end, and the standard error."""
    position = np.linspace(-0.5, 0.5, len(logs))
    weight = float(np.square(position).sum())
    slope = float(position @ logs) / weight
    residual = logs - logs.mean() - slope * position
    error = math.sqrt(float(np.square(residual).sum()) / (len(logs) - 2) / weight)
    return -slope, error


@dataclass
class Level:
    """A statistic of a metric's last `rows` rows is beyond a limit."""

    name: str
    metric: str
    what: str
    limit: float
    clear: float
    """From here on the figure is healthy again. If it is above `limit`, low figures are the fault,
    otherwise high ones."""
    rows: int
    advice: str
    settling: int = 0
    """Steps at the start of the run that are ignored."""
    up_to: float = math.inf
    """Figures beyond this are another check's fault."""
    statistic: Callable[[Iterable[float]], float] = median_low
    """The default never averages two rows, such as the one before and the one after a jump."""
    diverged: bool = False
    _values: deque[float] = field(default_factory=deque)

    def judge(self, step: int, age: int, row: Row) -> Reading | None:
        value = value_of(row, self.metric)
        low_is_bad = self.clear > self.limit
        # Without an adversary its losses are logged as exactly 0.
        if value is None or age <= self.settling or (low_is_bad and value == 0):
            return None
        self._values.append(value)
        if len(self._values) < self.rows:
            return None
        figure, fault = self.statistic(self._values), None
        self._values.popleft()
        if figure < self.limit if low_is_bad else self.limit < figure <= self.up_to:
            fault = True
        elif figure >= self.clear if low_is_bad else figure <= self.clear:
            fault = False
        message = f"{self.what}: {figure:.3g} over the last {self.rows} rows, limit {self.limit:g}"
        return Reading(figure, fault, message)


class MemoryGrowing:
    """Memory grows steadily.

    The growth rate is the mean rise between the medians of consecutive blocks of steps, without the
    two largest rises: the first validation, checkpoint or long clip takes memory once and keeps it.
    The last three blocks must rise too.

    Args:
        which: "gpu" or "host"; its metric is in GB of 10^9 bytes.
        log_every: steps between rows.
        settling: steps at the start of the run that are ignored.
        expected: GB of growth that are no fault, such as a replay buffer that fills.
    """

    advice = (
        "stop (Ctrl-C saves a checkpoint) and go on with --train.resume latest, which frees it; "
        "for more room lower --train.max-clips-per-pass or --seraena.replay-gigabytes"
    )
    diverged = False

    BLOCK_STEPS, BLOCKS, IGNORED_RISES = 250, 8, 2
    """The blocks span four default validations, so that a leak in validation is found too."""
    RATE, RELATIVE_RATE = 0.1, 0.01
    """Limits per 1,000 steps, in GB (0.1 is 1 GB in a run of the default length) and as a fraction
    of the level, far above an allocator's jitter. Growth beyond both is a fault."""
    GROWTH = 0.25
    """GB of growth beyond `expected` below which nothing is reported."""

    def __init__(self, which: str, log_every: int, settling: int, expected: float) -> None:
        self.name = f"growing-{which}-memory"
        self._metric = f"train/{which}_memory_gb"
        self._settling, self._expected = settling, expected
        self._block_steps = max(self.BLOCK_STEPS, 2 * log_every)
        self._block: list[float] = []
        self._block_number = 0
        self._levels = deque[float](maxlen=self.BLOCKS)
        self._first: float | None = None

    def judge(self, step: int, age: int, row: Row) -> Reading | None:
        value = value_of(row, self._metric)
        if value is None or age <= self._settling:
            return None
        number = step // self._block_steps
        whole = self._block if number != self._block_number else []
        self._block = [value] if whole else [*self._block, value]
        self._block_number = number
        if not whole:
            return None
        level = median(whole)
        self._levels.append(level)
        self._first = level if self._first is None else self._first
        if len(self._levels) < self.BLOCKS:
            return None
        rises = np.diff(self._levels) * 1000 / self._block_steps
        rate = float(min(np.sort(rises)[: -self.IGNORED_RISES].mean(), rises[-3:].mean()))
        limit = max(self.RATE, self.RELATIVE_RATE * level)
        grown = level - self._first
        fault: bool | None = None
        if rate > limit and grown > self._expected + self.GROWTH:
            fault = True
        elif rate < limit / 2:
            fault = False
        return Reading(
            rate,
            fault,
            f"{self._metric} grows by {rate:.3g} GB per 1,000 steps, limit {limit:.2g}; it is at "
            f"{level:.3g} GB, {grown:.2g} more than at the start",
        )
