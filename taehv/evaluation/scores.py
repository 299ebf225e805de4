"""From the frame table to the scores of a clip, and what each score means."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from taehv.evaluation.frames import FrameTable
from taehv.evaluation.metrics import FLAT_ENERGY, Figures, detail_of, psnr_of

Scores = dict[str, float]
"""Score -> value. NaN where a clip lacks a score, or the reconstruction is not a number: `value_of`
tells the two apart."""

Better = Literal["higher", "lower", "nearer 1"]


@dataclass(frozen=True)
class Metric:
    """How a score is taken over clips, shown and compared."""

    label: str
    better: Better
    unit: str = ""
    digits: int = 4
    """Significant digits that are worth showing."""
    missing_where: str = ""
    """Which clips lack it by its definition, in words. Empty: every clip has it, and NaN is the
    mark of a broken reconstruction. No score is infinite: PSNR ends at 100 dB."""
    parts: tuple[str, ...] = ()
    """Of a clip's scores, those whose means over clips it is made of; empty: its own."""
    pooled: Callable[..., Figures] | None = None
    """Makes it of those means. None: it is the one mean."""


METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR", "higher", "dB", parts=("mse",), pooled=psnr_of),
    "psnr_mean": Metric("mean PSNR", "higher", "dB", parts=("psnr",)),
    "ssim": Metric("SSIM", "higher"),
    "ms_ssim": Metric("MS-SSIM", "higher", missing_where="frames of fewer than 176 pixels a side"),
    "lpips": Metric("LPIPS", "lower", missing_where="frames of fewer than 32 pixels a side"),
    "mse": Metric("MSE", "lower"),
    "temporal": Metric("temporal error", "lower", missing_where="clips of one frame"),
    "flicker": Metric("flicker", "lower", missing_where="clips in which nothing stands still"),
    "detail": Metric("detail", "higher", parts=("laplacian_error", "laplacian"), pooled=detail_of),
    "sharpness": Metric("sharpness", "nearer 1"),
}
"""The scores that methods are compared by, in the order that they are shown in. PSNR and detail are
pooled: those of the mean error over all clips, which clips in which there is nothing to see do not
rule. One that was not measured of any clip, such as LPIPS without its weights, is not among a
clip's scores at all."""


def parts_of(clip: Mapping[str, float], name: str) -> tuple[float, ...] | None:
    """What a clip gives to a score over clips; None where it lacks that by the score's definition.

    A broken reconstruction's NaN is given as such, in flicker and the like too: its MSE is NaN as
    well, which that of a sound one never is.
    """
    metric = METRICS[name]
    parts = metric.parts or (name,)
    if any(part not in clip for part in parts):
        return None
    values = tuple(clip[part] for part in parts)
    broken = math.isnan(clip.get("mse", 0.0))
    if metric.missing_where and math.isnan(values[0]) and not broken:
        return None
    return values


def is_measured(clip: Mapping[str, float], name: str) -> bool:
    """Whether a score was measured, though the clip may lack it."""
    return all(part in clip for part in METRICS[name].parts or (name,))


def value_of(clip: Mapping[str, float], name: str) -> float | None:
    """A clip's own score, see `parts_of`."""
    parts = parts_of(clip, name)
    return None if parts is None else score_of(name, parts)


def score_of(name: str, means: Sequence[float]) -> float:
    """A score from the means of its parts over clips."""
    pooled = METRICS[name].pooled
    return float(means[0] if pooled is None else pooled(*means))


def broken_scores(clip: Mapping[str, float]) -> list[str]:
    """The scores of a clip that are not finite although it does not lack them."""
    found = {name: parts_of(clip, name) for name in METRICS if name in clip}
    return [
        name
        for name, parts in found.items()
        if parts is not None and not all(map(math.isfinite, (*parts, clip[name])))
    ]


def clip_scores(table: FrameTable) -> Scores:
    """The scores of a clip or video from its frames, by the definitions of
    `taehv.evaluation.metrics`.

    PSNR is that of the clip's MSE. Flicker is weighted by the part of each frame that stands still.
    A broken network's NaN stays one.
    """
    still = table["static"] > 0
    weight = table["static"][still]

    def over_still(name: str) -> float:
        total = float(weight.sum())
        return float((table[name][still] * weight).sum()) / total if total > 0 else math.nan

    def of_differences(name: str) -> float:
        values = table[name][1:]
        return float(values.mean()) if len(values) else math.nan

    def mean(name: str) -> float:
        return float(table[name].mean())

    mse, energy, error = mean("mse"), mean("laplacian"), mean("laplacian_error")
    scores = {
        "mse": mse,
        "psnr": float(psnr_of(mse)),
        "ssim": mean("ssim"),
        "ms_ssim": mean("ms_ssim"),
        "temporal": of_differences("temporal"),
        "flicker": over_still("flicker"),
        "flicker_original": over_still("flicker_original"),
        "sharpness": (mean("laplacian_reconstructed") + FLAT_ENERGY) / (energy + FLAT_ENERGY),
        "detail": float(detail_of(error, energy)),
        "laplacian": energy,
        "laplacian_error": error,
        "static": of_differences("static"),
        "motion": of_differences("motion"),
        "brightness": mean("brightness"),
        "spread": _spread(table),
    }
    return scores | ({"lpips": mean("lpips")} if "lpips" in table else {})


def _spread(table: FrameTable) -> float:
    """As `taehv.evaluation.metrics.spread`: within the frames, and of the frames' means."""
    between = np.mean([table[name].var() for name in ("red", "green", "blue")])
    return math.sqrt(float(table["variance"].mean() + between))


def pooled_scores(clips: Sequence[Mapping[str, float]]) -> Scores:
    """Every score over clips, see `METRICS`.

    Clips that lack a score are left out of it. NaN where all do, or one is broken.
    """
    result: Scores = {}
    for name in METRICS:
        found = [parts_of(clip, name) for clip in clips]
        present = [parts for parts in found if parts is not None]
        if present:
            result[name] = score_of(name, np.mean(present, axis=0))
        elif any(is_measured(clip, name) for clip in clips):
            result[name] = math.nan
    return result
