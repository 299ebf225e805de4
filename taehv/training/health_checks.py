"""The checks that `taehv.training.health.Health` runs over a run's rows.

Each looks at one thing, remembers a bounded number of rows, and gives of a row a `Reading`, or None
where the row has nothing for it or there is too little to tell yet. "Facts" are the figures that
the users judge a run by; where a limit is not theirs, its reason stands beside it.
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

GO_BACK = (
    "go on from a checkpoint before this (--train.resume) with a lower --optim.learning-rate, or "
    "let --train.on-divergence rollback do both"
)


@dataclass(frozen=True)
class Reading:
    """What a check says of the run at one row."""

    figure: float
    fault: bool | None
    """None: between its limit and well clear of it, or not yet long enough beyond it."""
    message: str
    """What, the figure, and the limit, in one line."""


class Check(Protocol):
    """The attributes are those of `taehv.training.health.Finding`."""

    name: str
    advice: str
    diverged: bool
    """If so, a fault of None casts doubt on the run."""

    def judge(self, step: int, age: int, row: Row) -> Reading | None:
        """Called for every row, in order; `age` is the number of steps since the first row."""


def value_of(row: Row, metric: str) -> float | None:
    """The metric in this row; None where it is missing or, `NotFinite`'s business, not finite."""
    value = row.get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


class NotFinite:
    """A loss or the gradient norm is not finite. The loop refuses such a loss before the weights
    move, but after a step with such a gradient norm they may not be finite either."""

    name = "not-finite"
    advice = GO_BACK
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
    """The reconstruction loss stays far above the lowest level that it had.

    (Seraena's loss rises in healthy training and says nothing.) Its level is the median of the
    last rows; held against the lowest so far, a slow divergence is seen like a sudden one.
    """

    name = "exploding-loss"
    advice = GO_BACK
    diverged = True

    FACTOR = 4.0
    """6 dB of PSNR lost, where batches vary by 20 to 30 %; leaves room for what the warm-up may
    cost pretrained weights."""
    LEVEL_ROWS, FEWEST_ROWS = 50, 10
    STREAK_ROWS, STREAK_STEPS = 5, 20
    """In a row, and over so many steps: Adam gets over spikes shorter than that by itself."""

    def __init__(self) -> None:
        self._recent = deque[float](maxlen=self.LEVEL_ROWS)
        self._lowest = math.inf
        self._streak_rows = self._streak_start = 0

    def judge(self, step: int, age: int, row: Row) -> Reading | None:
        loss = value_of(row, "train/reconstruction_loss")
        if loss is None:
            return None
        if len(self._recent) >= self.FEWEST_ROWS:
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
    """The reconstruction loss does not fall, though it is not low enough to rest.

    Facts: the slope of its moving average is to be negative. Noise turns that sign at will where
    progress is slow, so the fall is fitted (least squares on the logarithm) over the last third of
    the run so far, and it is a fault only where the fall AND thrice its standard error stay under
    `LEAST_FALL`: noise makes this check late, not loud. Since the stretch grows with the run, a
    loss that goes on falling ever more slowly, as a power of the step, is healthy at any age.
    """

    name = "stagnating-loss"
    advice = (
        "try another --optim.learning-rate (lower if the gradient norm is high), a lower "
        "--loss.seraena, or wider --model.decoder-widths"
    )
    diverged = False

    GOOD_ENOUGH = 0.005
    """Facts: an MSE below this is a success. A plateau there is convergence."""
    LEAST_FALL = 0.05
    """Over the stretch; about 1.2 dB for ten times as many steps. Runs that go well gain 3 dB."""
    ERRORS = 3.0
    """Standard errors of the fitted fall. With 2, of 20 simulated runs that gained 3 dB for ten
    times as many steps, in batches that vary by 30 %, 6 were called stagnating at some time."""
    PART, SHORTEST = 1 / 3, 500
    """The stretch: this part of the run so far, and no fewer steps."""
    BLOCK_STEPS, FEWEST_BLOCKS, MOST_BLOCKS = 10, 30, 1000
    """Rows closer than a block are averaged first, which bounds memory and work."""

    def __init__(self, log_every: int, settling: int) -> None:
        self._block_rows = -(-self.BLOCK_STEPS // log_every)
        self._block_steps = self._block_rows * log_every
        self._settling = settling
        self._block: list[float] = []
        self._logs = deque[float](maxlen=self.MOST_BLOCKS)

    def judge(self, step: int, age: int, row: Row) -> Reading | None:
        loss = value_of(row, "train/reconstruction_loss")
        if loss is None or age <= self._settling:
            return None
        self._block.append(loss)
        if len(self._block) < self._block_rows:
            return None
        self._logs.append(math.log(max(1e-12, sum(self._block) / len(self._block))))
        self._block = []
        blocks = max(self.SHORTEST, self.PART * age) / self._block_steps
        wanted = min(self.MOST_BLOCKS, max(self.FEWEST_BLOCKS, math.ceil(blocks)))
        if len(self._logs) < wanted:
            return None
        logs = np.array(self._logs)[-wanted:]
        fall, error = fitted_fall(logs)
        level, change = math.exp(logs.mean()), math.expm1(-fall)
        stretch = wanted * self._block_steps
        fault: bool | None = None
        if level < self.GOOD_ENOUGH or fall > self.LEAST_FALL:
            fault = False
        elif fall + self.ERRORS * error < self.LEAST_FALL:
            fault = True
        return Reading(
            change,
            fault,
            f"reconstruction loss {level:.3g} changed by {change:+.1%} in {stretch} steps; "
            f"wanted -{self.LEAST_FALL:.0%}, or a loss below {self.GOOD_ENOUGH:g}",
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
    """Where it is fine again. Above the limit, low figures are the fault; else high ones."""
    rows: int
    advice: str
    settling: int = 0
    """Steps at the start of the run that do not count."""
    up_to: float = math.inf
    """Beyond this another check speaks."""
    statistic: Callable[[Iterable[float]], float] = median_low
    """Its default is never a mean of two rows, such as one before and one after a jump."""
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

    Its medians over blocks of steps are compared one with the next, the two largest rises left
    out: the first validation, checkpoint or long clip takes memory once and keeps it. It has to
    have gone on over the last three blocks.

    Args:
        which: "gpu" or "host"; its metric is in GB of 10^9 bytes.
        expected: GB by which it may grow after the settling, such as a replay buffer that fills.
    """

    advice = (
        "stop (Ctrl-C saves a checkpoint) and go on with --train.resume latest, which frees it; "
        "for more room lower --train.max-clips-per-pass or --seraena.replay-gigabytes"
    )
    diverged = False

    BLOCK_STEPS, BLOCKS, STEPS_UP = 250, 8, 2
    """Four default validations long, so that what each of them keeps is seen all the same."""
    RATE, RELATIVE_RATE = 0.1, 0.01
    """Per 1,000 steps: GB, 1 in a run of the default length; and part of the level, far above an
    allocator's jitter. Growth is a fault beyond both."""
    GROWTH = 0.25
    """GB beyond `expected` since the settling: less is not worth a word."""

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
        rate = float(min(np.sort(rises)[: -self.STEPS_UP].mean(), rises[-3:].mean()))
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
