"""Features from which upsampling by copies and a 3x3 convolution can make any block.

Such a convolution has the same sum of taps for both halves of a copied pixel, so that its first
half less its second is a difference of neighbours, w0 (f[i-1] - f[i]) + w2 (f[i] - f[i+1]) with
its outer taps w0 and w2. For this to be some d[i], f has to be the running sum of d along the row.
A sum that forgets half of itself at every position is known from a few neighbours, and misses only
what is the same at many positions in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taehv.model.start.least_squares import Chunks, components

KEEPS = 0.5
"""What is left of a running sum at the next position."""

SHARES = (0.22, 0.22, 0.26)
"""Of the features: differences of rows, of columns, and of both; the rest are means."""


_ALONG = ((), (2,), (3,), (2, 3))
"""The dimensions along which a mean, a difference of rows, of columns, and of both are summed."""


def running_sums(blocks: Chunks, count: int) -> Chunks:
    """At most so many features of a picture.

    Args:
        blocks: [rows, C, 2 h, 2 w]: what each of the four pixels that a pixel becomes stands for.

    Returns [rows, features, h, w], about their mean: the principal components of the means of 2x2
    pixels; of the differences of their rows, of their columns, and of both, the sums from either
    end.
    """
    parts = [_mean_and_differences(chunk) for chunk in blocks]
    both = int(SHARES[2] * count) // 4
    one = [int(share * count) // 2 for share in SHARES[:2]]
    counts = [count - 4 * both - 2 * sum(one), *one, both]
    counts = [min(wanted, blocks[0].shape[1]) for wanted in counts]
    features: list[list[Tensor]] = [[] for _ in blocks]
    for kind, wanted in enumerate(counts):
        if not wanted:
            continue
        own = [part[kind] for part in parts]
        for found, chunk in zip(features, components(own, wanted), strict=True):
            found += _sums(chunk, along=_ALONG[kind])
    return [torch.cat(found, 1) for found in features]


def _mean_and_differences(block: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[rows, C, 2 h, 2 w] -> four of [rows, C, h, w]: the transform of Haar of 2x2 pixels."""
    (a, b), (c, d) = ([block[:, :, y::2, x::2] for x in (0, 1)] for y in (0, 1))
    return (a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2


def _sums(differences: Tensor, along: tuple[int, ...]) -> list[Tensor]:
    """From either end, along each of the dimensions."""
    found = [differences]
    for dim in along:
        found = [sums for x in found for sums in (_sum(x, dim), _sum(x.flip(dim), dim).flip(dim))]
    return found


def _sum(x: Tensor, dim: int) -> Tensor:
    total, found = torch.zeros_like(x.select(dim, 0)), []
    for values in x.unbind(dim):
        total = KEEPS * total + values
        found.append(total)
    return torch.stack(found, dim)
