"""What a position of the decoder is to become: the block of pixels that grows out of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from taehv.model.start.least_squares import Chunks


@dataclass(frozen=True, eq=False)
class Picture:
    """The frames that the decoder should give."""

    chunks: list[Tensor]
    """[N, T, C, H, W], folded by the patch size."""
    trim: int
    """Raw decoded frames before the first of them."""

    def blocks(self, frames: int, side: int) -> tuple[Chunks, int]:
        """Blocks of so many raw frames and pixels a side, and the number of steps before the first
        one that lies in the picture as a whole.

        Each chunk is [steps * N, frames * C * side^2, H / side, W / side], time outermost.
        """
        first = -(-self.trim // frames)
        start = first * frames - self.trim
        return [_cut(chunk[:, start:], frames, side) for chunk in self.chunks], first

    def head(self, chunks: int) -> Picture:
        """The first chunks."""
        return Picture(self.chunks[:chunks], self.trim)


def _cut(video: Tensor, frames: int, side: int) -> Tensor:
    n, t, c, h, w = video.shape
    steps = t // frames
    cut = video[:, : steps * frames].reshape(n, steps, frames, c, h // side, side, w // side, side)
    return cut.permute(1, 0, 2, 3, 5, 7, 4, 6).reshape(
        steps * n, frames * c * side**2, h // side, w // side
    )
