"""Health checks of a run's losses, and of its score beside that of its start."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

import numpy as np
from numpy.typing import NDArray

from taehv.training.health_checks import Reading, Row, value_of

ROLLBACK_ADVICE = (
    "go on from a checkpoint before this (--train.resume) with a lower --optim.learning-rate, or "
    "let --train.on-divergence rollback do both"
)


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


class StartLost:
    """The averaged weights score far below those that the run began with.

    A solved start, like weights of an earlier training, is at the bottom of a narrow valley, which
    large steps leave in every direction.
    """

    name = "start-lost"
    advice = (
        "begin again with a lower --optim.learning-rate (or a lower --loss.seraena, which trades "
        "PSNR for sharpness); best_model.* has the start's weights until a validation is better"
    )
    diverged = False

    MOST_LOST, CLEAR = 1.0, 0.5
    """dB. A warm-up may cost some tenths, and so may a strong adversary."""

    def __init__(self) -> None:
        self._start: float | None = None

    def judge(self, step: int, age: int, row: Row) -> Reading | None:
        psnr = value_of(row, "val_ema/psnr")
        if psnr is None:
            return None
        if self._start is None:
            # A run that goes on from another's checkpoint begins with that one's score.
            self._start = psnr
        lost = self._start - psnr
        fault = True if lost > self.MOST_LOST else False if lost < self.CLEAR else None
        return Reading(
            lost,
            fault,
            f"val_ema/psnr {psnr:.2f} dB is {lost:.2f} dB below the run's first validation, "
            f"{self._start:.2f} dB; limit {self.MOST_LOST:g} dB",
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
