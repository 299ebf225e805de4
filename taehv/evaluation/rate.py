"""The size of latents in bits, in half precision and in 8 bits, and their statistics.

Shape letters: N clips, t latents in time, C channels, h and w latent size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RAW_BITS = 24
"""Bits per pixel of raw RGB video."""

HALF_BITS, INT8_BITS = 16, 8
RANGE_BITS = 2 * HALF_BITS
"""Of the two ends of a channel's range, sent in half precision with every 8-bit latent."""


def int8_round_trip(latents: Tensor) -> Tensor:
    """Quantise latents to 8 bits and back. NtChw -> NtChw, in their own dtype.

    Each channel of each latent has its own range, min to max in 255 steps. So nothing has to be
    known of the rest of a video, and a stream can be stored frame by frame.
    """
    low = latents.amin(dim=(-2, -1), keepdim=True).half().to(latents.dtype)
    high = latents.amax(dim=(-2, -1), keepdim=True).half().to(latents.dtype)
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float16).tiny)
    return ((latents - low) / step).round().clamp(0, 255) * step + low


@dataclass(frozen=True)
class Rate:
    """Bits per pixel of the original's frames."""

    half: float
    int8: float
    """With the ranges."""

    @classmethod
    def of(cls, latent_shape: tuple[int, int, int, int], pixels: int) -> "Rate":
        """latent_shape: (t, C, h, w) of a clip; pixels: T * H * W of it."""
        t, channels, height, width = latent_shape
        values, ranges = t * channels * height * width, t * channels
        return cls(values * HALF_BITS / pixels, (values * INT8_BITS + ranges * RANGE_BITS) / pixels)


class LatentStatistics:
    """Mean, standard deviation and range of all observed latents, in constant memory."""

    def __init__(self) -> None:
        self._count = 0
        # Zeros and infinities that take on the channels' shape with the first latents.
        self._sums = torch.zeros((), dtype=torch.float64)
        self._squares = torch.zeros((), dtype=torch.float64)
        self._low = torch.tensor(math.inf, dtype=torch.float64)
        self._high = torch.tensor(-math.inf, dtype=torch.float64)

    def observe(self, latents: Tensor) -> Tensor:
        """Add NtChw latents, and return them unchanged."""
        channels = latents.detach().double().cpu().transpose(0, 2).flatten(1)
        seen = LatentStatistics()
        seen._count = channels.shape[1]
        seen._sums, seen._squares = channels.sum(dim=1), channels.square().sum(dim=1)
        seen._low, seen._high = channels.amin(dim=1), channels.amax(dim=1)
        self.merge(seen)
        return latents

    def merge(self, other: "LatentStatistics") -> None:
        """Add the latents that another object has observed."""
        self._count += other._count
        self._sums = self._sums + other._sums
        self._squares = self._squares + other._squares
        self._low = torch.minimum(self._low, other._low)
        self._high = torch.maximum(self._high, other._high)

    def summary(self) -> dict[str, float | list[float]]:
        """Mean and standard deviation over all, and per channel with the range."""
        count = max(self._count, 1)
        means = self._sums / count
        spreads = (self._squares / count - means.square()).clamp(min=0).sqrt()
        mean = means.mean()
        spread = (self._squares.mean() / count - mean.square()).clamp(min=0).sqrt()
        return {
            "mean": float(mean),
            "std": float(spread),
            "channel_mean": means.tolist(),
            "channel_std": spreads.tolist(),
            "channel_min": self._low.tolist(),
            "channel_max": self._high.tolist(),
        }
