"""Clips with the statistics of real video, in so far as a linear transform sees them: fields whose
spectrum falls with frequency, as natural pictures' do (Field 1987), with an edge, that move."""

import numpy as np
import torch
from torch import Tensor


def natural_clips(count: int, frames: int = 9, size: int = 64, seed: int = 0) -> Tensor:
    """float32 [count, frames, 3, size, size] in [0, 1]."""
    return torch.stack(
        [_clip(np.random.default_rng([seed, k]), frames, size) for k in range(count)]
    )


def _clip(random: np.random.Generator, frames: int, size: int) -> Tensor:
    wide = 2 * size
    frequency = np.hypot(np.fft.fftfreq(wide)[:, None], np.fft.fftfreq(wide)[None]) + 1 / wide
    noise = np.fft.fft2(random.standard_normal((3, wide, wide)))
    field = np.fft.ifft2(noise / frequency**1.3).real
    field /= field.std()
    y, x = np.mgrid[-1 : 1 : wide * 1j, -1 : 1 : wide * 1j]
    slope = random.uniform(-1, 1, 3)
    edge = np.sign(slope[0] * y + slope[1] * x + 0.3 * slope[2])
    picture = np.clip(0.5 + 0.16 * (0.8 * field[:1] + 0.2 * field + 0.7 * edge), 0, 1)
    speed = random.integers(-2, 3, 2)
    moved = [
        np.roll(picture, tuple(t * speed), (1, 2))[:, :size, :size].astype(np.float32)
        for t in range(frames)
    ]
    return torch.from_numpy(np.stack(moved))
