"""Structural similarity frame by frame: SSIM, and over five scales where pictures are large enough.

Not torchmetrics', which does not use that the window separates into two lines. It takes several
times as long, and SSIM is most of the work on a whole video.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 11
"""Side of the Gaussian window, pixels; no picture may be smaller."""

SSIM_SIGMA = 1.5
"""Standard deviation of the window, pixels."""

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, the finest first: the paper's."""

SMALLEST_SIDE = SSIM_WINDOW * 2 ** (len(WEIGHTS) - 1)
"""Pixels: a picture as small as the window at the coarsest scale."""

C1, C2 = 0.01**2, 0.03**2


def has_five_scales(height: int, width: int) -> bool:
    """Whether pictures of this size are large enough for `ms_ssim`."""
    return bool(min(height, width) >= SMALLEST_SIDE)


def ssim(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Structural similarity, mean over R, G, B. [T, 3, H, W] x2 in [0, 1] -> [T], 1 is right.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity":
    Gaussian window 11 / 1.5, K1 0.01, K2 0.03, data range 1. As torchmetrics has it today, every
    pixel counts, the picture being reflected beyond its border; the paper's own code, and
    torchmetrics before pull request 2721, leave out a border of 5 pixels.

    Raises ValueError for pictures smaller than the window.
    """
    height, width = original.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs pictures of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, "
            f"got {height}x{width} (height x width)"
        )
    margin = [SSIM_WINDOW // 2] * 4

    def of_frame(a: Tensor, b: Tensor) -> Tensor:
        a, b = (F.pad(frame, margin, mode="reflect") for frame in (a, b))
        luminance, structure = _similarity(a, b)
        return (luminance * structure).mean()

    return _frame_by_frame(of_frame, original, reconstructed)


def ms_ssim(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Multi-scale structural similarity, mean over R, G, B. [T, 3, H, W] x2 in [0, 1] -> [T].

    Wang, Simoncelli, Bovik 2003, "Multi-scale structural similarity for image quality assessment":
    contrast and structure at five scales, luminance at the coarsest, each to the power of its
    weight, the pictures being halved by 2x2 averages in between. As in the paper's own code, only
    windows that lie within the picture count, and a scale whose mean is negative counts as 0.

    Raises ValueError for pictures smaller than 176 pixels.
    """
    if not has_five_scales(*original.shape[-2:]):
        raise ValueError(
            f"MS-SSIM needs {SMALLEST_SIDE} pixels a side, got {tuple(original.shape)}"
        )

    def of_frame(a: Tensor, b: Tensor) -> Tensor:
        product = a.new_ones(a.shape[:2])
        for scale, weight in enumerate(WEIGHTS):
            luminance, value = _similarity(a, b)
            if scale == len(WEIGHTS) - 1:
                value = luminance * value
            product = product * value.mean(dim=(2, 3)).clamp(min=0) ** weight
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        return product.mean()

    return _frame_by_frame(of_frame, original, reconstructed)


def _frame_by_frame(of_frame: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """The windows' means take many times the memory of the frames they are made from."""
    return torch.stack([of_frame(a[t : t + 1], b[t : t + 1]) for t in range(len(a))])


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast with structure, about every pixel whose window is inside: 1CHW."""
    means = _gaussian_means(torch.cat([a, b, a * a, b * b, a * b], dim=1))
    mean_a, mean_b, square_a, square_b, product = means.chunk(5, dim=1)
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return luminance, structure


def _gaussian_means(planes: Tensor) -> Tensor:
    """Each channel's means over the Gaussian window: down and then across, since it separates."""
    offsets = torch.arange(SSIM_WINDOW, dtype=planes.dtype, device=planes.device)
    line = torch.exp(-((offsets - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2))
    channels = planes.shape[1]
    kernel = (line / line.sum()).repeat(channels, 1, 1, 1)
    down = F.conv2d(planes, kernel.transpose(2, 3), groups=channels)
    return F.conv2d(down, kernel, groups=channels)
