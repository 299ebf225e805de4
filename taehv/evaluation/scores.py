"""From the frame table to the scores of a clip, and what each score means."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from taehv.evaluation.frames import FrameTable
from taehv.metrics import FLAT_ENERGY, SMALLEST_MSE

Scores = dict[str, float]
"""Score -> value; NaN where a clip has none."""

Better = Literal["higher", "lower", "nearer 1"]


@dataclass(frozen=True)
class Metric:
    """A score, for people."""

    label: str
    better: Better
    unit: str = ""
    digits: int = 4
    """Significant digits that are worth showing."""

    def badness(self, value: float) -> float:
        """The value on a scale on which less is better."""
        if self.better == "nearer 1":
            return abs(value - 1)
        return -value if self.better == "higher" else value


METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR", "higher", "dB"),
    "ssim": Metric("SSIM", "higher"),
    "ms_ssim": Metric("MS-SSIM", "higher"),
    "lpips": Metric("LPIPS", "lower"),
    "mse": Metric("MSE", "lower"),
    "temporal": Metric("temporal error", "lower"),
    "flicker": Metric("flicker", "lower"),
    "sharpness": Metric("sharpness", "nearer 1"),
}
"""The scores that methods are compared by, in the order that they are shown in."""


def psnr_of(mse: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """dB of an MSE, at most 100: see `taehv.metrics.psnr`."""
    result: NDArray[np.float64] = -10 * np.log10(np.maximum(mse, SMALLEST_MSE))
    return result


MAY_BE_MISSING = ("flicker", "flicker_original", "temporal", "static", "motion")
"""Scores that a sound clip may lack: nothing stands still in it, or it has one frame."""


def clip_scores(table: FrameTable) -> Scores:
    """The scores of a clip or video from its frames, by the definitions of `taehv.metrics`.

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
    """The mean of every score over clips; of PSNR, too: it comes after the logarithm."""
    result: Scores = {}
    for name in clips[0]:
        values = np.array([clip[name] for clip in clips])
        present = values[~np.isnan(values)] if name in MAY_BE_MISSING else values
        result[name] = float(present.mean()) if len(present) else math.nan
    return result
