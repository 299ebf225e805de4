"""The frame table: all measurements of a clip or video, frame by frame.

All other figures are means over this table. So a clip of nine frames and a video of an hour are
scored by one rule, and the hour takes no more memory for frames than the clip.

Shape letters: T frames, C channels, H height, W width.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taehv.evaluation import metrics
from taehv.evaluation.structure import has_five_scales, ms_ssim, ssim

FrameTable = dict[str, NDArray[np.float64]]
"""Column -> [T]. A value that a frame does not have (a difference, for the first) is NaN."""

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""[T, 3, H, W] twice, in [0, 1] -> [T], 0 is right: see `taehv.evaluation.lpips`."""

STILL = 2.5 / 255
"""A pixel stands still if no channel changes by more than two grey levels of 255, which is what the
rounding of a video codec may change."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G, B in brightness (BT.601)."""


class FrameScorer:
    """Scores frames as they come, in pieces of any length; it keeps one frame of each side.

    Columns, T being the frames so far:

    - `mse`, `ssim`, `ms_ssim` (NaN below 176 pixels), `lpips` (where weights were given): of the
      frame; see `taehv.evaluation.metrics`.
    - `temporal`: MSE between the two frame differences x[t] - x[t - 1]. It sees what moves wrongly
      and what flickers, and is blind to an error that stands still.
    - `flicker`: mean |y[t] - y[t - 1]| of the reconstruction over the pixels where the original
      stands still (see `STILL`), in [0, 1]. Lai et al. 2018, "Learning blind video temporal
      consistency", compare frames along the optical flow where nothing is hidden; this is that
      error where the flow is known without estimating it, because it is 0.
    - `flicker_original`: the same of the original itself. It is the floor: not above `STILL`.
    - `static`: the part of the pixels that stand still, the weight of the two.
    - `detail_original`, `detail`: Laplacian energies, whose ratio is sharpness.
    - `motion`: mean |x[t] - x[t - 1]| of the original. `brightness`: mean luma of the original.
    """

    def __init__(self, perceptual: Perceptual | None = None) -> None:
        self._perceptual = perceptual
        self._columns: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def add(self, original: Tensor, reconstructed: Tensor) -> None:
        """The next T frames of both, [T, 3, H, W], paired; clamped to [0, 1] here.

        Raises ValueError for what is no pair, or smaller than the window of SSIM.
        """
        # A frame is a clip of one frame: the training's own functions score it.
        x, y = original.float().clamp(0, 1), reconstructed.float().clamp(0, 1)
        pair = x[:, None], y[:, None]
        columns = {
            "mse": metrics.mse(*pair),
            "ssim": ssim(x, y),
            "ms_ssim": ms_ssim(x, y)
            if has_five_scales(*x.shape[-2:])
            else x.new_full((len(x),), torch.nan),
            "detail_original": metrics.laplacian_energy(pair[0]),
            "detail": metrics.laplacian_energy(pair[1]),
            "brightness": (x * x.new_tensor(LUMA)[:, None, None]).sum(1).mean(dim=(1, 2)),
            **self._differences(x, y),
        }
        if self._perceptual is not None:
            columns["lpips"] = self._perceptual(x, y)
        for name, values in columns.items():
            self._columns[name].append(values.double().cpu())
        self._last = x[-1:], y[-1:]

    def table(self) -> FrameTable:
        """All frames so far. Raises ValueError where there is none."""
        if self._last is None:
            raise ValueError("no frame has been scored")
        return {name: torch.cat(parts).numpy() for name, parts in self._columns.items()}

    def _differences(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The columns that compare a frame with the one before it: NaN for the very first."""
        lead = 0 if self._last is None else 1
        if self._last is not None:
            x, y = torch.cat([self._last[0], x]), torch.cat([self._last[1], y])
        dx, dy = x.diff(dim=0), y.diff(dim=0)
        still = (dx.abs().amax(dim=1) <= STILL).float()

        def over_still(change: Tensor) -> Tensor:
            # 0 / 0 where nothing stands still: such a frame has no flicker, and weighs nothing.
            total = (change.abs().mean(dim=1) * still).sum(dim=(1, 2))
            return total / still.sum(dim=(1, 2))

        columns = {
            "temporal": (dy - dx).square().mean(dim=(1, 2, 3)),
            "motion": dx.abs().mean(dim=(1, 2, 3)),
            "static": still.mean(dim=(1, 2)),
            "flicker": over_still(dy),
            "flicker_original": over_still(dx),
        }
        if lead == 0:
            none = x.new_full((1,), torch.nan)
            columns = {name: torch.cat([none, values]) for name, values in columns.items()}
        return columns
