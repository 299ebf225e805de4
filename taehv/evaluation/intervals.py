"""Confidence intervals of a figure over videos, by a seeded bootstrap.

The clips of one video resemble each other, so whole videos are drawn, not clips: the interval is
wide for many clips of few videos, which say little about the next video.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

RESAMPLES = 2000
LEVEL = 0.95

Groups = Sequence[Sequence[float | Sequence[float] | None]]
"""Per video, the values of its clips, one or several each; None where a clip has none."""


@dataclass(frozen=True)
class Interval:
    """A figure over clips, and where that over all such videos may lie, with 95 % confidence."""

    mean: float
    """The mean of the clips' values, or what is made of it. NaN where no clip has a value, or one
    has a value that is not a finite number."""
    low: float
    """NaN, as `high` is, where fewer than two videos have a value, or the mean is NaN."""
    high: float
    clips: int
    """That have a value, finite or not."""


def bootstrap(
    groups: Groups,
    seed: int = 0,
    pooled: Callable[..., NDArray[np.float64]] | None = None,
) -> Interval:
    """Mean over all values and its 95 % interval, videos being drawn with replacement.

    pooled: the figure, given the mean of each of the clips' values: such as PSNR, of the mean MSE.
    It is taken of every resample, after the mean.

    The expanded percentile interval of Hesterberg 2015, "What teachers should know about the
    bootstrap": a plain percentile interval is too narrow for few samples, by sqrt((n - 1) / n) and
    by a normal in place of Student's t quantile; so it is taken at levels that make up for both.
    None is left out. A value that is not finite is not: then the figure is not a number either. The
    same values and seed give the same interval.
    """
    sums, counts = _totals(groups)
    videos, clips = len(sums), int(counts.sum())
    if videos == 0 or not np.isfinite(sums).all():
        return Interval(math.nan, math.nan, math.nan, clips)

    def figure(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return means[..., 0] if pooled is None else pooled(*np.moveaxis(means, -1, 0))

    mean = float(figure(sums.sum(axis=0) / clips))
    if videos < 2:
        return Interval(mean, math.nan, math.nan, clips)
    drawn = np.random.default_rng(seed).integers(videos, size=(RESAMPLES, videos))
    figures = figure(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)[:, None])
    widened = math.sqrt(videos / (videos - 1)) * t_quantile(videos - 1)
    tail = NormalDist().cdf(-widened)
    low, high = np.quantile(figures, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), clips)


def t_quantile(freedom: int) -> float:
    """Student's t at the upper end of a two-sided interval of `LEVEL`."""
    return float(student.ppf((1 + LEVEL) / 2, freedom))


def _totals(groups: Groups) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums, [videos, values of a clip], and number of the clips of each video that has any."""
    present = [[np.atleast_1d(v) for v in values if v is not None] for values in groups]
    kept = [values for values in present if values]
    return (
        np.array([np.sum(values, axis=0) for values in kept], np.float64),
        np.array([len(values) for values in kept], np.float64),
    )
