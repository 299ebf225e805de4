"""The linear limit: what a plain linear transform of blocks makes of a video at a network's rate.

A block is what one latent stands for: time_downscale frames of space_downscale x space_downscale
pixels in three colours. Principal components of the blocks of training clips, as many as a latent
has channels, are the best linear code of that size (Jolliffe 2002, "Principal Component Analysis",
chapter 2), and need no training. A network that scores below it has yet to earn its keep.

Shape letters: N clips, T frames, C channels, H height, W width, B blocks, D values of a block, K
coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taehv.atomic import replacing
from taehv.model.alignment import repeat_last_frame

FILE = "linear_limit.safetensors"
"""In a run's folder."""

UNREADABLE = (OSError, SafetensorError, KeyError, TypeError, ValueError)
"""What reading a damaged file, or another one of its name, may raise."""

FEWEST_BLOCKS = 50
"""Blocks per coefficient; of fewer, components are those of the clips and not of the videos."""

MOST_CLIPS = 256
"""Clips that are looked at: more change no component that matters."""

GREY = 0.5

LARGEST_EXACT = 4096
"""D up to which the covariance is decomposed as a whole, in some seconds."""

OVERSAMPLING, POWER_ITERATIONS = 16, 4
"""Of the randomised decomposition beyond (Halko, Martinsson and Tropp 2011, algorithm 4.4)."""


@dataclass(frozen=True)
class BlockShape:
    """What a latent stands for."""

    frames: int
    pixels: int
    """Of a side."""

    @property
    def values(self) -> int:
        """D."""
        return 3 * self.frames * self.pixels**2

    def split(self, frames: Tensor) -> Tensor:
        """NTCHW, H and W multiples of `pixels` -> [B, D]; the end is padded as the encoder pads it.

        Blocks are in the order of N, time, rows and columns.
        """
        n, t, c, h, w = frames.shape
        whole = repeat_last_frame(frames, -(-t // self.frames) * self.frames)
        p = self.pixels
        cut = whole.reshape(n, -1, self.frames, c, h // p, p, w // p, p)
        return cut.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(-1, self.values)

    def join(self, blocks: Tensor, shape: torch.Size) -> Tensor:
        """[B, D] -> NTCHW of the given shape."""
        n, t, c, h, w = shape
        p = self.pixels
        cut = blocks.reshape(n, -1, h // p, w // p, self.frames, c, p, p)
        return cut.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(n, -1, c, h, w)[:, :t]


@dataclass(frozen=True, eq=False)
class LinearLimit:
    """The transform, fitted."""

    block: BlockShape
    mean: Tensor
    """[D]."""
    basis: Tensor
    """[K, D], orthonormal rows, the component of most variance first."""

    @property
    def label(self) -> str:
        """For people."""
        return f"linear, {len(self.basis)} coefficients"

    def reconstruct(self, frames: Tensor) -> Tensor:
        """NTCHW in [0, 1] -> the same shape, clamped."""
        mean, basis = self.mean.to(frames.device), self.basis.to(frames.device)
        coefficients = (self.block.split(frames) - mean) @ basis.T
        return self.block.join(coefficients @ basis + mean, frames.shape).clamp(0, 1)

    def save(self, file: Path) -> None:
        """Write it as safetensors. Raises OSError."""
        block = {"frames": str(self.block.frames), "pixels": str(self.block.pixels)}
        with replacing(file) as temporary:
            save_file({"mean": self.mean, "basis": self.basis}, temporary, block)

    @staticmethod
    def load(file: Path) -> LinearLimit:
        """What `save` wrote. Raises one of `UNREADABLE`."""
        with safe_open(file, "pt") as content:
            stored = content.metadata()
            block = BlockShape(int(stored["frames"]), int(stored["pixels"]))
            return LinearLimit(block, content.get_tensor("mean"), content.get_tensor("basis"))


class LinearFit:
    """Fits the transform to clips that come one after the other."""

    def __init__(self, block: BlockShape, coefficients: int) -> None:
        self.block, self.coefficients = block, coefficients
        self._clips = self._count = 0
        self._is_exact = block.values <= LARGEST_EXACT
        self._sum = torch.zeros(block.values, dtype=torch.float64)
        self._products = torch.zeros(block.values if self._is_exact else 0, block.values).double()
        self._blocks: list[Tensor] = []

    @property
    def is_full(self) -> bool:
        """Whether no more clips are needed."""
        enough = 2 * FEWEST_BLOCKS * self.coefficients
        return self._clips >= MOST_CLIPS or (not self._is_exact and self._count >= enough)

    def add(self, clips: Tensor) -> None:
        """Clips, NTCHW in [0, 1], on the CPU."""
        # About grey, so that the products are small numbers, and their sum exact enough.
        blocks = self.block.split(clips) - GREY
        self._clips += len(clips)
        self._count += len(blocks)
        self._sum += blocks.sum(0, dtype=torch.float64)
        if self._is_exact:
            self._products += blocks.T @ blocks
        else:
            self._blocks.append(blocks)

    def result(self) -> LinearLimit | None:
        """The transform; None where there were too few blocks."""
        if self._count < FEWEST_BLOCKS * self.coefficients:
            return None
        mean = self._sum / self._count
        if self._is_exact:
            covariance = self._products / self._count - torch.outer(mean, mean)
            # Eigenvalues ascend.
            vectors = torch.linalg.eigh(covariance)[1].flip(1)
        else:
            centred = torch.cat(self._blocks) - mean.float()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                wide = min(self.coefficients + OVERSAMPLING, *centred.shape)
                vectors = torch.svd_lowrank(centred, wide, POWER_ITERATIONS)[2]
        basis = vectors[:, : self.coefficients].T.float().contiguous()
        return LinearLimit(self.block, mean.float() + GREY, basis)
