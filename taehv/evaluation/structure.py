"""Structural similarity frame by frame: SSIM, and over five scales where pictures are large enough.

Not torchmetrics', which does not use that the window separates into two lines. It takes several
times as long, and SSIM is most of the work on a whole video.

Shape letters: T frames, C channels, H height, W width.
"""

from collections.abc import Iterable
from dataclasses import dataclass

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

MARGIN = SSIM_WINDOW // 2
"""Pixels from a window's middle to its border."""

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
    frames = zip(original[:, None], reconstructed[:, None], strict=True)
    return torch.stack([Reference(a, has_scales=False).ssim(b)[0] for a, b in frames])


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
    frames = zip(original[:, None], reconstructed[:, None], strict=True)
    return torch.stack([Reference(a).ssim(b)[1] for a, b in frames])


class Reference:
    """An original frame, with the means over its own windows, which every reconstruction of it is
    compared with. They take many times the memory of the frame."""

    def __init__(self, frame: Tensor, has_scales: bool = True) -> None:
        """frame: [1, 3, H, W] in [0, 1]. has_scales: whether MS-SSIM is wanted where the frame is
        large enough for it. Raises ValueError for a frame smaller than the window."""
        height, width = frame.shape[-2:]
        if min(height, width) < SSIM_WINDOW:
            raise ValueError(
                f"SSIM needs pictures of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, "
                f"got {height}x{width} (height x width)"
            )
        self._has_scales = has_scales and has_five_scales(height, width)
        self._scales = [_Windows.of(picture) for picture in self._pictures(frame)]

    def ssim(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """SSIM and MS-SSIM of a reconstruction, [1, 3, H, W] in [0, 1]; the second is NaN where
        it is not wanted, or the frame is too small."""
        single, product = frame.new_tensor(torch.nan), frame.new_ones(frame.shape[:2])
        pictures = self._pictures(frame)
        for scale, (windows, picture) in enumerate(zip(self._scales, pictures, strict=True)):
            luminance, structure = windows.similarity(picture)
            if scale == 0:
                single = (luminance * structure).mean()
                # Without the windows that reach over the border.
                inner = slice(MARGIN, -MARGIN)
                structure = structure[..., inner, inner]
            elif scale == len(WEIGHTS) - 1:
                structure = luminance * structure
            if self._has_scales:
                product = product * structure.mean(dim=(2, 3)).clamp(min=0) ** WEIGHTS[scale]
        return single, product.mean() if self._has_scales else frame.new_tensor(torch.nan)

    def _pictures(self, frame: Tensor) -> Iterable[Tensor]:
        """The frame with a border for SSIM, and, where wanted, halved again and again."""
        yield F.pad(frame, [MARGIN] * 4, mode="reflect")
        for _ in WEIGHTS[1:] if self._has_scales else ():
            frame = F.avg_pool2d(frame, 2)
            yield frame


@dataclass(frozen=True)
class _Windows:
    """A picture and the Gaussian means of it and of its square, [1, C, H, W] each."""

    picture: Tensor
    mean: Tensor
    square: Tensor

    @classmethod
    def of(cls, picture: Tensor) -> "_Windows":
        means = _gaussian_means(torch.cat([picture, picture * picture], dim=1))
        return cls(picture, *means.chunk(2, dim=1))

    def similarity(self, other: Tensor) -> tuple[Tensor, Tensor]:
        """Luminance, and contrast with structure, about every pixel whose window is inside."""
        means = _gaussian_means(torch.cat([other, other * other, self.picture * other], dim=1))
        mean, square, product = means.chunk(3, dim=1)
        means_product, means_squares = self.mean * mean, self.mean**2 + mean**2
        luminance = (2 * means_product + C1) / (means_squares + C1)
        structure = (2 * (product - means_product) + C2) / (
            self.square + square - means_squares + C2
        )
        return luminance, structure


def _gaussian_means(planes: Tensor) -> Tensor:
    """Each channel's means over the Gaussian window: down and then across, since it separates."""
    offsets = torch.arange(SSIM_WINDOW, dtype=planes.dtype, device=planes.device)
    line = torch.exp(-((offsets - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2))
    channels = planes.shape[1]
    kernel = (line / line.sum()).repeat(channels, 1, 1, 1)
    down = F.conv2d(planes, kernel.transpose(2, 3), groups=channels)
    return F.conv2d(down, kernel, groups=channels)
