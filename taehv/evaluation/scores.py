"""From the frame table to the scores of a clip, and what each score means."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from taehv.evaluation.frames import FrameTable
from taehv.evaluation.metrics import FLAT_ENERGY, SMALLEST_MSE

Scores = dict[str, float]
"""Score -> value. NaN where a clip lacks a score, or the reconstruction is not a number: `value_of`
tells the two apart."""

Better = Literal["higher", "lower", "nearer 1"]


@dataclass(frozen=True)
class Metric:
    """How a score is shown and compared."""

    label: str
    better: Better
    unit: str = ""
    digits: int = 4
    """Significant digits that are worth showing."""
    missing_where: str = ""
    """Which clips lack it by its definition, in words. Empty: every clip has it, and NaN is the
    mark of a broken reconstruction. No score is infinite: PSNR ends at 100 dB."""


METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR", "higher", "dB"),
    "ssim": Metric("SSIM", "higher"),
    "ms_ssim": Metric("MS-SSIM", "higher", missing_where="frames of fewer than 176 pixels a side"),
    "lpips": Metric("LPIPS", "lower"),
    "mse": Metric("MSE", "lower"),
    "temporal": Metric("temporal error", "lower", missing_where="clips of one frame"),
    "flicker": Metric("flicker", "lower", missing_where="clips in which nothing stands still"),
    "sharpness": Metric("sharpness", "nearer 1"),
}
"""The scores that methods are compared by, in the order that they are shown in. One that was not
measured of any clip, such as LPIPS without its weights, is not among a clip's scores at all."""


def value_of(clip: Mapping[str, float], name: str) -> float | None:
    """A clip's score; None where the clip lacks it by the score's definition.

    A broken reconstruction's NaN is given as such, in flicker and the like too: its MSE is NaN as
    well, which that of a sound one never is.
    """
    value = clip.get(name)
    broken = math.isnan(clip.get("mse", 0.0))
    if value is not None and math.isnan(value) and METRICS[name].missing_where and not broken:
        return None
    return value


def broken_scores(clip: Mapping[str, float]) -> list[str]:
    """The scores of a clip that are not finite although it does not lack them."""
    values = {name: value_of(clip, name) for name in METRICS if name in clip}
    return [name for name, v in values.items() if v is not None and not math.isfinite(v)]


def psnr_of(mse: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """dB of an MSE, at most 100: see `taehv.evaluation.metrics.psnr`."""
    result: NDArray[np.float64] = -10 * np.log10(np.maximum(mse, SMALLEST_MSE))
    return result


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

    mse, detail = float(table["mse"].mean()), float(table["detail"].mean())
    scores = {
        "mse": mse,
        "psnr": float(psnr_of(mse)),
        "ssim": float(table["ssim"].mean()),
        "ms_ssim": float(table["ms_ssim"].mean()),
        "temporal": of_differences("temporal"),
        "flicker": over_still("flicker"),
        "flicker_original": over_still("flicker_original"),
        "sharpness": (detail + FLAT_ENERGY)
        / (float(table["detail_original"].mean()) + FLAT_ENERGY),
        "static": of_differences("static"),
        "motion": of_differences("motion"),
        "brightness": float(table["brightness"].mean()),
    }
    return scores | ({"lpips": float(table["lpips"].mean())} if "lpips" in table else {})


def mean_scores(clips: Sequence[Mapping[str, float]]) -> Scores:
    """The mean of every score over clips; of PSNR, too: it comes after the logarithm.

    Clips that lack a score are left out of its mean. NaN where all do, or one is broken.
    """
    result: Scores = {}
    for name in METRICS:
        values = [value_of(clip, name) for clip in clips if name in clip]
        present = [value for value in values if value is not None]
        if values:
            result[name] = sum(present) / len(present) if present else math.nan
    return result
