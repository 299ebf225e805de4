"""Linear layers that are solved and not trained: principal components, and convolutions by least
squares.

Activations come in chunks, each a tensor [rows, C, H, W] of some clips, so that no layer's whole
output must fit in memory at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Chunks = list[Tensor]

RIDGE = 1e-5
"""Of each input's own energy, added to the diagonal of the normal equations."""

POSITIONS = 120_000
POSITIONS_PER_INPUT = 25
"""A fit looks at so many positions, or at so many per number that an output is made of."""

LARGEST_EXACT, MOST_VECTORS = 1024, 4096
"""Principal components of more values than the first come from a sample of so many vectors."""

MARGIN = 0.1
"""Of a feature's range, left free on either side for clips that the fit has not seen."""


SMALLEST = 1e-4
"""A feature whose range is smaller, a fortieth of a grey level, is a constant: it is moved, and not
scaled."""


@dataclass(frozen=True, eq=False)
class Range:
    """What the values of each channel lie between, [C] each."""

    low: Tensor
    high: Tensor

    @staticmethod
    def of(chunks: Chunks) -> Range:
        """The values' own, and a margin."""
        low = torch.stack([chunk.amin((0, 2, 3)) for chunk in chunks]).amin(0)
        high = torch.stack([chunk.amax((0, 2, 3)) for chunk in chunks]).amax(0)
        spread = high - low
        margin = torch.where(spread > SMALLEST, MARGIN * spread, 0.5)
        return Range(low - margin, high + margin)

    @property
    def size(self) -> Tensor:
        return self.high - self.low


def channel_means(chunks: Chunks) -> Tensor:
    """[C]."""
    return torch.stack([chunk.mean((0, 2, 3)) for chunk in chunks]).mean(0)


def principal_components(chunks: Chunks, count: int) -> Tensor:
    """[count, C], orthonormal rows, the component of most variance first (Jolliffe 2002, chapter
    2). Of its two signs, each has the one by which its values reach further up than down."""
    mean = channel_means(chunks)
    vectors = [_as_rows(chunk - mean[:, None, None]) for chunk in chunks]
    if len(mean) > LARGEST_EXACT:
        basis = _leading_components(vectors, count)
    else:
        covariance = sum((rows.T @ rows).double() for rows in vectors)
        assert isinstance(covariance, Tensor)
        # Eigenvalues ascend.
        basis = torch.linalg.eigh(covariance)[1].flip(1)[:, :count].T.float()
    skew = torch.stack([(rows @ basis.T).pow(3).mean(0) for rows in vectors]).sum(0)
    signed: Tensor = torch.where(skew < 0, -1.0, 1.0)[:, None] * basis
    return signed


def about(chunks: Chunks) -> Chunks:
    """Less the mean of each channel."""
    mean = channel_means(chunks)[:, None, None]
    return [y - mean for y in chunks]


def components(blocks: Chunks, count: int) -> Chunks:
    """At most so many principal components, about their mean."""
    basis = principal_components(blocks, min(count, blocks[0].shape[1]))
    return [F.conv2d(y, basis[..., None, None]) for y in about(blocks)]


def _leading_components(vectors: list[Tensor], count: int) -> Tensor:
    """By a randomised decomposition (Halko, Martinsson and Tropp 2011, algorithm 4.4)."""
    step = -(-sum(map(len, vectors)) // MOST_VECTORS)
    sample = torch.cat([rows[::step] for rows in vectors])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = min(count + 16, *sample.shape)
        basis = torch.svd_lowrank(sample, wide, niter=3)[2].T[:count]
    if len(basis) < count:
        # Fewer vectors than components: the others carry nothing.
        basis = F.pad(basis, (0, 0, 0, count - len(basis)))
    return basis


def fit_convolution(inputs: Chunks, targets: Chunks, size: int) -> Tensor:
    """The kernel [C', C, size, size] whose convolution of the inputs, padded with zeros, is nearest
    to the targets [rows, C', H, W] in the mean of squares: a ridge regression by the normal
    equations, in float64."""
    numbers = inputs[0].shape[1] * size**2
    outputs = targets[0].shape[1]
    device = inputs[0].device
    products = torch.zeros(numbers, numbers, dtype=torch.float64, device=device)
    projections = torch.zeros(numbers, outputs, dtype=torch.float64, device=device)
    for x, y in _samples(inputs, targets, max(POSITIONS, POSITIONS_PER_INPUT * numbers)):
        patches = F.unfold(x, size, padding=size // 2).transpose(0, 1).reshape(numbers, -1)
        wanted = y.flatten(2).transpose(0, 1).reshape(outputs, -1)
        products += (patches @ patches.T).double()
        projections += (patches @ wanted.T).double()
    # In units in which each input has the energy 1; one that is always 0 gets no weight.
    scale = products.diagonal().sqrt()
    scale = torch.where(scale > 0, 1 / scale, 0)
    products *= scale[:, None] * scale
    factor = _factor(products)
    solution = scale[:, None] * torch.cholesky_solve(scale[:, None] * projections, factor)
    return solution.T.float().reshape(outputs, -1, size, size)


def _factor(products: Tensor) -> Tensor:
    """Cholesky's factor of the products and the ridge: a larger one where inputs depend on each
    other so closely that the rounding of float32 exceeds it."""
    own = torch.eye(len(products)).to(products)
    for larger in (1, 10, 100, 1000):
        factor, failed = torch.linalg.cholesky_ex(products + larger * RIDGE * own)
        if not failed:
            found: Tensor = factor
            return found
    raise ArithmeticError("activations or targets of the solved start are not finite")


def _samples(inputs: Chunks, targets: Chunks, positions: int) -> list[tuple[Tensor, Tensor]]:
    """Rows of all chunks, evenly, with about so many positions, in parts that fit in memory."""
    area = inputs[0].shape[2] * inputs[0].shape[3]
    total = sum(len(chunk) for chunk in inputs)
    wanted = min(total, max(1, -(-positions // area)))
    per_part = max(1, 40_000 // area)
    parts = []
    for x, y in zip(inputs, targets, strict=True):
        count = max(1, round(wanted * len(x) / total))
        rows = torch.unique(torch.linspace(0, len(x) - 1, count, device=x.device).round().long())
        parts += [(x[part], y[part]) for part in torch.split(rows, per_part)]
    return parts


def _as_rows(x: Tensor) -> Tensor:
    """[rows, C, H, W] -> [rows * H * W, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
