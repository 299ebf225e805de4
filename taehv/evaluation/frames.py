"""The frame table: all measurements of a clip or video, frame by frame.

All other figures follow from means over this table. So a clip of nine frames and a video of an hour
are scored by one rule, and the hour takes no more memory for frames than the clip.

Shape letters: T frames, C channels, H height, W width.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taehv.evaluation import artifacts, metrics
from taehv.evaluation.metrics import LUMA, STILL
from taehv.evaluation.structure import Reference

FrameTable = dict[str, NDArray[np.float64]]
"""Column -> [T]. A value that a frame does not have (a difference, for the first) is NaN."""

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""[T, 3, H, W] twice, in [0, 1] -> [T], 0 is right: see `taehv.evaluation.lpips`."""


class FrameScorer:
    """Scores frames as they come, in pieces of any length, of any number of reconstructions of the
    same original; it keeps one frame of each. What the original alone decides is computed once.

    Columns of a reconstruction's table, T being the frames so far:

    - `mse`, `ssim`, `ms_ssim` (NaN below 176 pixels), `lpips` (where weights were given; NaN below
      32 pixels): of the frame; see `taehv.evaluation.metrics`.
    - `temporal`: MSE between the two frame differences x[t] - x[t - 1]. It sees what moves wrongly
      and what flickers, and is blind to an error that stands still.
    - `flicker`: mean |y[t] - y[t - 1]| of the reconstruction over the pixels where the original
      stands still (see `STILL`), in [0, 1]. Lai et al. 2018, "Learning blind video temporal
      consistency", compare frames along the optical flow where nothing is hidden; this is that
      error where the flow is known without estimating it, because it is 0.
    - `flicker_original`: the same of the original itself. It is the floor: not above `STILL`.
    - `static`: the part of the pixels that stand still, the weight of the two.
    - `laplacian`, `laplacian_reconstructed`, `laplacian_error`: Laplacian energies of the original,
      of the reconstruction, and of their difference, from which sharpness and detail follow.
    - `motion`: mean |x[t] - x[t - 1]| of the original. `brightness`: mean luma of the original.
    - what artifacts are made of: see `taehv.evaluation.artifacts.Reference`.
    - `red`, `green`, `blue`, `variance`: the original's mean of each, and the variance about them,
      from which the spread of a clip follows.
    """

    def __init__(self, perceptual: Perceptual | None = None) -> None:
        self._perceptual = perceptual
        # Eight bytes a value: of an hour there are millions.
        self._columns: defaultdict[str, defaultdict[str, array[float]]] = defaultdict(
            lambda: defaultdict(lambda: array("d"))
        )
        self._last: Tensor | None = None
        self._last_of: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, original: Tensor, reconstructions: Mapping[str, Tensor]) -> None:
        """The next T frames of the original and of each reconstruction, [T, 3, H, W], paired, under
        the same names each time; clamped to [0, 1] here.

        Raises ValueError for what is no pair, or smaller than the window of SSIM.
        """
        x = original.float().clamp(0, 1)
        ys = {name: y.float().clamp(0, 1) for name, y in reconstructions.items()}
        for y in ys.values():
            if y.shape != x.shape:
                raise ValueError(
                    f"original {tuple(x.shape)} and reconstruction {tuple(y.shape)} differ in shape"
                )
        structure = _structure(x, ys)
        laplacian = metrics.laplacian(x)
        channels = x.mean(dim=(2, 3))
        changes = _Changes(x, self._last)
        faults = artifacts.Reference(x, changes.largest())
        of_original = {
            "laplacian": _energy(laplacian),
            "brightness": channels @ x.new_tensor(LUMA),
            "red": channels[:, 0],
            "green": channels[:, 1],
            "blue": channels[:, 2],
            "variance": x.var(dim=(2, 3), correction=0).mean(dim=1),
            **changes.of_original(),
            **faults.of_original(),
        }
        for name, y in ys.items():
            response = metrics.laplacian(y)
            columns = of_original | structure[name]
            columns |= {
                "mse": (y - x).square_().mean(dim=(1, 2, 3)),
                "laplacian_reconstructed": _energy(response),
                "laplacian_error": _energy(response.sub_(laplacian)),
                **changes.of_reconstruction(y, self._last_of.get(name)),
                **faults.of_reconstruction(y),
            }
            if self._perceptual is not None:
                columns["lpips"] = self._perceptual(x, y)
            # At once: a GPU is waited for each time.
            values = torch.stack([*columns.values()]).double().cpu()
            for column, row in zip(columns, values, strict=True):
                self._columns[name][column].extend(row.tolist())
            self._last_of[name] = y[-1:]
        self._last = x[-1:]

    def tables(self) -> dict[str, FrameTable]:
        """All frames so far, by reconstruction. Raises ValueError where there is none."""
        if self._last is None:
            raise ValueError("no frame has been scored")
        return {
            name: {column: np.array(values) for column, values in columns.items()}
            for name, columns in self._columns.items()
        }


class _Changes:
    """The columns that compare a frame with the one before it: NaN for the very first."""

    def __init__(self, x: Tensor, last: Tensor | None) -> None:
        self._is_first = last is None
        self._dx = x.diff(dim=0, prepend=last)
        self._largest = self._dx.abs().amax(dim=1)
        self._still = (self._largest <= STILL).float()

    def largest(self) -> Tensor:
        """|x[t] - x[t - 1]|, the largest of the channels, [T, H, W]."""
        if not self._is_first:
            return self._largest
        none = self._dx.new_full((1, *self._dx.shape[-2:]), torch.nan)
        return torch.cat([none, self._largest])

    def of_original(self) -> dict[str, Tensor]:
        size = self._dx.abs()
        return self._whole(
            {
                "motion": size.mean(dim=(1, 2, 3)),
                "static": self._still.mean(dim=(1, 2)),
                "flicker_original": self._over_still(size),
            }
        )

    def of_reconstruction(self, y: Tensor, last: Tensor | None) -> dict[str, Tensor]:
        dy = y.diff(dim=0, prepend=last)
        return self._whole(
            {
                "temporal": (dy - self._dx).square_().mean(dim=(1, 2, 3)),
                "flicker": self._over_still(dy.abs_()),
            }
        )

    def _over_still(self, size: Tensor) -> Tensor:
        # 0 / 0 where nothing stands still: such a frame has no flicker, and weighs nothing.
        total = (size.mean(dim=1) * self._still).sum(dim=(1, 2))
        return total / self._still.sum(dim=(1, 2))

    def _whole(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self._is_first:
            return columns
        none = self._dx.new_full((1,), torch.nan)
        return {name: torch.cat([none, values]) for name, values in columns.items()}


def _structure(x: Tensor, ys: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """SSIM and MS-SSIM, frame by frame: the windows' means take much memory."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in ys}
    for t in range(len(x)):
        reference = Reference(x[t : t + 1])
        for name, y in ys.items():
            found[name].append(reference.ssim(y[t : t + 1]))
    return {
        name: {
            "ssim": torch.stack([single for single, _ in scores]),
            "ms_ssim": torch.stack([multiple for _, multiple in scores]),
        }
        for name, scores in found.items()
    }


def _energy(response: Tensor) -> Tensor:
    """Mean square of each frame's, [T, 3, H, W] -> [T]."""
    return response.square().mean(dim=(1, 2, 3))
