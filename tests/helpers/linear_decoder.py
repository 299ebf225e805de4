"""The best linear decoder under nearest-neighbour upsampling, in closed form and float64: what the
solved start is measured by.

A pixel at place (p, q) of its block is a sum over the 3x3 latents around it and two steps, with
weights w[p, q]. After upsampling by copies and convolving, for every row of the nine the sum over
columns does not depend on q, and for every column the sum over rows not on p. With each direction
in the basis centre, difference and second difference, of which the centre alone has a sum, that
means: a part of w is the same for all places, a part depends on p, a part on q, and a part is
free. The inputs are the same for all places, so the squared error falls apart into mean, rows,
columns and interaction of the block, as in an analysis of variance, and each is a least-squares
problem of its own.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = torch.tensor([[0, 1, 0], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
ALL, DIFFERENCES = (0, 1, 2), (1, 2)


class LinearDecoder:
    """Fitted to latents [N, T, C, h, w], centred, and frames [N, 4 T - 3, 3, 8 h, 8 w]."""

    def __init__(self, latents: Tensor, frames: Tensor, constrained: bool = True) -> None:
        blocks = _blocks(frames)
        if constrained:
            mean = blocks.mean((2, 3), keepdim=True)
            rows = blocks.mean(3, keepdim=True) - mean
            columns = blocks.mean(2, keepdim=True) - mean
            free = blocks - mean - rows - columns
            self._parts = [
                (mean, [*product(ALL, ALL)]),
                (rows, [*product(DIFFERENCES, ALL)]),
                (columns, [*product(ALL, DIFFERENCES)]),
                (free, [*product(DIFFERENCES, DIFFERENCES)]),
            ]
        else:
            self._parts = [(blocks, [*product(ALL, ALL)])]
        inputs = _neighbours(latents)
        self._fits = []
        for wanted, taps in self._parts:
            # Of the first step three frames are not in the video.
            x = _select(inputs, taps)[latents[:, 0, 0].numel() :]
            y = wanted.flatten(1)
            self._fits.append(torch.linalg.lstsq(x, y).solution)

    def __call__(self, latents: Tensor) -> Tensor:
        n, t, _, h, w = latents.shape
        inputs = _neighbours(latents)
        total = torch.zeros(len(inputs), 12, 8, 8, dtype=torch.float64)
        for (wanted, taps), fit in zip(self._parts, self._fits, strict=True):
            total += (_select(inputs, taps) @ fit).reshape(-1, *wanted.shape[1:])
        video = total.reshape(t, n, h, w, 4, 3, 8, 8).permute(1, 0, 4, 5, 2, 6, 3, 7)
        return video.reshape(n, 4 * t, 3, 8 * h, 8 * w)[:, 3:]


def _neighbours(latents: Tensor) -> Tensor:
    """[T * N * h * w, 2 C, 3, 3] in the basis of `TAPS`, time outermost."""
    before = torch.cat([torch.zeros_like(latents[:, :1]), latents[:, :-1]], 1)
    both = torch.cat([latents, before], 2).transpose(0, 1).flatten(0, 1)
    patches = F.unfold(both, 3, padding=1).transpose(1, 2).reshape(-1, both.shape[1], 3, 3)
    return torch.einsum("mcyx,uy,vx->mcuv", patches, TAPS, TAPS)


def _select(inputs: Tensor, taps: list[tuple[int, int]]) -> Tensor:
    """The inputs of some basis functions, and a constant."""
    chosen = [inputs[:, :, u, v] for u, v in taps]
    return torch.cat([*chosen, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)


def _blocks(frames: Tensor) -> Tensor:
    """[(T - 1) * N * h * w, 4 * 3, 8, 8]: of the steps whose frames are all there."""
    whole = frames[:, 1:]
    n, t, c, h, w = whole.shape
    cut = whole.reshape(n, t // 4, 4, c, h // 8, 8, w // 8, 8).permute(1, 0, 4, 6, 2, 3, 5, 7)
    return cut.reshape(-1, 4 * c, 8, 8)
