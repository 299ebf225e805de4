"""How close a reconstruction is to its original: one pure function per metric.

Every function takes two NTCHW RGB tensors of one shape, values in [0, 1], and gives one value per
clip, float [N]; averaging over clips and over workers is the caller's. The two are paired
already: frame t of one belongs to frame t of the other (`taehv.model.alignment` owns that rule).

Scores see clamped frames: both tensors are clamped to [0, 1] here, since the losses see the
network's unclamped output and the same tensor may be handed to both. A value that is not a number
stays one in the score. Half precision is raised to float32.

Shape letters: N clips, T frames, C channels, H height, W width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taehv.evaluation import structure

Figures = NDArray[np.float64]

SMALLEST_MSE = 1e-10
"""Identical clips have no finite PSNR; this floor gives them 100 dB. Rounding to 8 bits alone
costs more (58.9 dB), so no real reconstruction reaches it."""

FLAT_SPREAD = 0.02
"""A clip whose values spread (standard deviation) by less than this about the mean of their channel
counts as flat: five grey levels of 255. Much of the road and the sky, in the video's own pixels, is
flat, and says nothing of sharpness."""

FLAT_ENERGY = 1e-6
"""Laplacian energy below which a clip counts as flat: a quarter of a grey level of 255, squared."""

STILL = 2.5 / 255
"""A pixel stands still if no channel changes by more than two grey levels of 255, which is what the
rounding of a video codec may change."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G, B in brightness (BT.601)."""


def mse(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Mean squared error over all values of a clip. NTCHW x2 -> [N], 0 is right."""
    original, reconstructed = _pair(original, reconstructed)
    return (original - reconstructed).square().mean(dim=(1, 2, 3, 4))


def psnr(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, dB: -10 log10 of the clip's MSE. NTCHW x2 -> [N].

    Taken per clip, not per frame; the mean over clips comes after the logarithm. At most 100 dB.
    """
    return -10 * mse(original, reconstructed).clamp(min=SMALLEST_MSE).log10()


def ssim(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Structural similarity of the RGB frames, mean over frames. NTCHW x2 -> [N], 1 is right.

    As `taehv.evaluation.structure.ssim`, which raises ValueError for pictures smaller than its
    window.
    """
    original, reconstructed = _pair(original, reconstructed)
    clips = zip(original, reconstructed, strict=True)
    return torch.stack([structure.ssim(*clip).mean() for clip in clips])


def temporal(original: Tensor, reconstructed: Tensor) -> Tensor:
    """MSE between the frame differences x[t + 1] - x[t] of the two. NTCHW x2 -> [N], 0 is right.

    It sees flicker, and is blind to an error that stands still. A single frame scores 0.
    """
    original, reconstructed = _pair(original, reconstructed)
    if original.shape[1] == 1:
        return original.new_zeros(original.shape[0])
    difference = (reconstructed - original).diff(dim=1)
    return difference.square().mean(dim=(1, 2, 3, 4))


def sharpness(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Ratio of Laplacian energy, reconstruction to original. NTCHW x2 -> [N], 1 is right.

    Below 1 is blur, above 1 is noise or ringing; pixel errors alone do not tell the two apart.
    Both energies are raised by `FLAT_ENERGY`, so that a flat original has a score: 1 for a flat
    reconstruction, well above 1 for one that invents texture.
    """
    original, reconstructed = _pair(original, reconstructed)
    return (laplacian_energy(reconstructed) + FLAT_ENERGY) / (
        laplacian_energy(original) + FLAT_ENERGY
    )


def laplacian_energy(frames: Tensor) -> Tensor:
    """Mean square of the `laplacian`. NTCHW float -> [N]. Raises ValueError as it does."""
    return laplacian(frames).square().reshape(frames.shape[0], -1).mean(dim=1)


def laplacian(frames: Tensor) -> Tensor:
    """The 4-neighbour Laplacian at the inner pixels. [..., H, W] float -> [..., H - 2, W - 2].

    Raises ValueError for pictures smaller than 3x3, which have no inner pixel.
    """
    if min(frames.shape[-2:]) < 3:
        raise ValueError(f"sharpness needs at least 3x3 pixels, got {tuple(frames.shape)}")
    # Not a convolution, which takes five times as long for so few channels.
    rows, columns = frames[..., 1:-1], frames[..., 1:-1, :]
    across = columns[..., :-2] + columns[..., 2:]
    return (rows[..., :-2, :] + rows[..., 2:, :]).add_(across).sub_(rows[..., 1:-1, :], alpha=4)


def spread(original: Tensor) -> Tensor:
    """Standard deviation of a clip's values about the mean of their channel. NTCHW -> [N]."""
    return original.float().var(dim=(1, 3, 4), correction=0).mean(dim=1).sqrt()


def score_clips(original: Tensor, reconstructed: Tensor) -> dict[str, Tensor]:
    """All that is measured of a batch's clips: name -> [N]; `pool` makes scores of it.

    original, reconstructed: NTCHW RGB in [0, 1], one shape, at least 11x11 pixels.
    """
    x, y = _pair(original, reconstructed)
    return {metric.__name__: metric(x, y) for metric in (mse, psnr, ssim, temporal, sharpness)} | {
        "laplacian": laplacian_energy(x),
        "laplacian_error": laplacian_energy(x - y),
        "spread": spread(x),
    }


def psnr_of(mse: Figures | float) -> Figures:
    """dB of an MSE, at most 100, as `psnr`."""
    result: Figures = -10 * np.log10(np.maximum(mse, SMALLEST_MSE))
    return result


def detail_of(error: Figures | float, energy: Figures | float) -> Figures:
    """1 - |L(x - y)|^2 / |L x|^2, of the two mean Laplacian energies."""
    result: Figures = 1 - np.asarray(error) / np.maximum(energy, FLAT_ENERGY)
    return result


def pool(clips: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Scores over clips, from what `score_clips` measures of each; at least one clip.

    The names follow `val/` in the logs:

    - `psnr`: of the error pooled over all clips, dB. A mean over clips is ruled by those in which
      there is nothing to see: they have 50 dB and more.
    - `psnr_mean`: the mean of the clips' own PSNR.
    - `detail`: 1 - |L(x - y)|^2 / |L x|^2, pooled, with L the Laplacian. 1 is right, 0 is blur,
      and noise makes it negative, which a ratio of energies, such as `sharpness`, takes for detail.
    - `flat_clips`: the part of the clips that are flat, see `FLAT_SPREAD`.
    - the mean of everything else.
    """
    mean = {name: sum(clip[name] for clip in clips) / len(clips) for name in clips[0]}
    energy, error = mean.pop("laplacian"), mean.pop("laplacian_error")
    del mean["spread"]
    return mean | {
        "psnr": float(psnr_of(mean["mse"])),
        "psnr_mean": mean["psnr"],
        "detail": float(detail_of(error, energy)),
        "flat_clips": sum(clip["spread"] < FLAT_SPREAD for clip in clips) / len(clips),
    }


def _pair(original: Tensor, reconstructed: Tensor) -> tuple[Tensor, Tensor]:
    """The two as clamped floats of at least 32 bits; ValueError where they are not a pair."""
    if original.shape != reconstructed.shape:
        raise ValueError(
            f"original {tuple(original.shape)} and reconstruction {tuple(reconstructed.shape)} "
            "differ in shape: pair their frames first"
        )
    if original.ndim != 5 or original.numel() == 0:
        raise ValueError(f"expected NTCHW frames, got shape {tuple(original.shape)}")
    for frames in (original, reconstructed):
        if not frames.is_floating_point():
            raise ValueError(f"expected float frames in [0, 1], got {frames.dtype}")
    dtype = torch.promote_types(
        torch.promote_types(original.dtype, reconstructed.dtype), torch.float32
    )
    return original.to(dtype).clamp(0, 1), reconstructed.to(dtype).clamp(0, 1)
