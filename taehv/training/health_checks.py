"""The checks that `taehv.training.health.Health` runs over a run's rows: what all of them share,
and those of levels and of memory. Those of losses and scores are in `loss_checks`.

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

Row = Mapping[str, Any]


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
