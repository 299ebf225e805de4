"""One method against another on the same clips."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from taehv.evaluation.intervals import bootstrap
from taehv.evaluation.metrics import Figures
from taehv.evaluation.scores import METRICS, is_measured, parts_of

Outcome = Literal["better", "worse", "no difference shown", "not compared"]

FEWEST_VIDEOS = 6
"""Fewer show nothing, whatever their figures: that five videos all favour one side happens by
chance in 6 % of cases."""


@dataclass(frozen=True)
class Difference:
    """Ours minus theirs in one score, over the same clips."""

    metric: str
    mean: float
    """Of a pooled score, ours over all pairs minus theirs; else the mean over the pairs. NaN where
    there is none, or one of them is not a number."""
    low: float
    """Of the 95 % interval; see `intervals.bootstrap`."""
    high: float
    outcome: Outcome
    """Of ours."""
    pairs: int
    """Clips that have the score in both."""
    note: str
    """Why it was not compared, or that not all clips were; else empty."""


def compare(
    ours: Sequence[Sequence[Mapping[str, float]]],
    theirs: Sequence[Sequence[Mapping[str, float]]],
    seed: int = 0,
) -> list[Difference]:
    """A difference in each score that was measured, over the clips that have it in both.

    ours, theirs: per video, the scores of its clips; the same clips in the same order.
    A pooled score, such as PSNR, is pooled anew in every resample, on both sides. Sharpness, of
    which 1 is right, is compared by its distance from 1.
    """
    clips = [clip for side in (ours, theirs) for video in side for clip in video]
    return [
        _difference(name, ours, theirs, seed)
        for name in METRICS
        if any(is_measured(clip, name) for clip in clips)
    ]


def _difference(
    name: str,
    ours: Sequence[Sequence[Mapping[str, float]]],
    theirs: Sequence[Sequence[Mapping[str, float]]],
    seed: int,
) -> Difference:
    metric = METRICS[name]

    def pair(mine: Mapping[str, float], other: Mapping[str, float]) -> tuple[float, ...] | None:
        a, b = parts_of(mine, name), parts_of(other, name)
        if a is None or b is None:
            return None
        if metric.better == "nearer 1":
            return (abs(a[0] - 1) - abs(b[0] - 1),)
        return a + b if metric.pooled else (a[0] - b[0],)

    def of_both(*means: Figures) -> Figures:
        assert metric.pooled is not None
        half = len(means) // 2
        return metric.pooled(*means[:half]) - metric.pooled(*means[half:])

    paired = [
        [pair(a, b) for a, b in zip(mine, other, strict=True)]
        for mine, other in zip(ours, theirs, strict=True)
    ]
    interval = bootstrap(paired, seed, of_both if metric.pooled else None)
    sign = 1 if metric.better == "higher" else -1
    outcome: Outcome = "no difference shown"
    if math.isnan(interval.mean):
        outcome = "not compared"
    elif sum(any(v is not None for v in video) for video in paired) >= FEWEST_VIDEOS:
        if min(sign * interval.low, sign * interval.high) > 0:
            outcome = "better"
        elif max(sign * interval.low, sign * interval.high) < 0:
            outcome = "worse"
    return Difference(
        name,
        interval.mean,
        interval.low,
        interval.high,
        outcome,
        interval.clips,
        _note(paired, metric.missing_where),
    )


def _note(paired: Sequence[Sequence[tuple[float, ...] | None]], missing_where: str) -> str:
    differences = [values for video in paired for values in video]
    present = [values for values in differences if values is not None]
    broken = sum(not all(map(math.isfinite, values)) for values in present)
    if not present:
        return f"no clip has it: {missing_where} have none"
    if broken:
        return f"not a number in {broken} of {len(differences)} clips"
    if len(present) < len(differences):
        return f"{len(present)} of {len(differences)} clips have it"
    return ""
