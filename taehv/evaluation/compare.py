"""One method against another on the same clips."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from taehv.evaluation.intervals import bootstrap
from taehv.evaluation.scores import METRICS

Outcome = Literal["better", "worse", "no difference shown"]

FEWEST_VIDEOS = 6
"""Fewer show nothing, whatever their figures: that five videos all favour one side happens by
chance in 6 % of cases."""


@dataclass(frozen=True)
class Difference:
    """Ours minus theirs in one score, paired clip by clip."""

    metric: str
    mean: float
    low: float
    """Of the 95 % interval; see `intervals.bootstrap`."""
    high: float
    outcome: Outcome
    """Of ours."""


def compare(
    ours: Sequence[Sequence[Mapping[str, float]]],
    theirs: Sequence[Sequence[Mapping[str, float]]],
    seed: int = 0,
) -> list[Difference]:
    """A difference in each score that both have.

    ours, theirs: per video, the scores of its clips; the same clips in the same order.
    Sharpness, of which 1 is right, is compared by its distance from 1.
    """
    return [
        _difference(name, ours, theirs, seed)
        for name in METRICS
        if name in ours[0][0] and name in theirs[0][0] and not math.isnan(ours[0][0][name])
    ]


def _difference(
    name: str,
    ours: Sequence[Sequence[Mapping[str, float]]],
    theirs: Sequence[Sequence[Mapping[str, float]]],
    seed: int,
) -> Difference:
    metric = METRICS[name]

    def value(clip: Mapping[str, float]) -> float:
        return abs(clip[name] - 1) if metric.better == "nearer 1" else clip[name]

    paired = [
        [value(a) - value(b) for a, b in zip(mine, other, strict=True)]
        for mine, other in zip(ours, theirs, strict=True)
    ]
    interval = bootstrap(paired, seed)
    sign = 1 if metric.better == "higher" else -1
    outcome: Outcome = "no difference shown"
    if len(paired) >= FEWEST_VIDEOS:
        if min(sign * interval.low, sign * interval.high) > 0:
            outcome = "better"
        elif max(sign * interval.low, sign * interval.high) < 0:
            outcome = "worse"
    return Difference(name, interval.mean, interval.low, interval.high, outcome)
