"""Original, reconstruction and their difference, side by side: a still grid and a video.

Clips are uint8 NTCHW RGB, NumPy arrays or tensors on any device.

Shape letters: N clips, T frames, C channels, H height, W width.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from jobs.media.mp4 import SMALLEST_SIDE, Mp4Writer, Picture

Clips = NDArray[np.uint8] | torch.Tensor

DIFFERENCE_GAIN = 5
"""Factor on the absolute difference; what passes 255 is cut off there."""

GAP = 4
"""Pixels between neighbours."""

BACKGROUND = 24
CELL_SIDE = 144
"""Smallest width and height of a cell of the grid, pixels: room for its title."""

FONT_SIZE = 15
"""Smallest height of a title, pixels; it grows with the pictures."""


def side_by_side_png(original: Clips, reconstructed: Clips, path: Path) -> None:
    """A grid of stills: one row a clip; original, reconstruction and difference of three frames.

    original, reconstructed: uint8 NTCHW of one shape. The frames are the first, the middle and the
    last. Small pictures are enlarged by whole factors, so a pixel stays a pixel.
    """
    first, second = _pair(original, reconstructed)
    _, num_frames, height, width, _ = first.shape
    times = sorted({0, (num_frames - 1) // 2, num_frames - 1})
    factor = max(-(-CELL_SIDE // height), -(-CELL_SIDE // width), 1)

    rows = [
        _joined([side_by_side(a[t], b[t], factor) for t in times], axis=1, gap=3 * GAP)
        for a, b in zip(first, second, strict=True)
    ]
    grid = _joined(rows, axis=0, gap=GAP)
    titles = [f"frame {t + 1} of {num_frames}" for t in times]
    picture = np.concatenate([_header(titles, grid.shape[1], width * factor), grid])
    path.parent.mkdir(parents=True, exist_ok=True)
    ImageOps.expand(Image.fromarray(picture), 2 * GAP, (BACKGROUND,) * 3).save(path)


def comparison_mp4(original: Clips, reconstructed: Clips, path: Path, fps: float) -> None:
    """A video: one row a clip, original | reconstruction | difference. H.264, yuv420p, BT.709.

    original, reconstructed: uint8 NTCHW of one shape; fps: frames per second, above 0. Small
    pictures are enlarged by a whole factor; the sizes are even, as yuv420p needs.
    """
    if fps <= 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    first, second = _pair(original, reconstructed)
    num_frames, height = first.shape[1:3]
    factor = max(-(-SMALLEST_SIDE // height), 1)

    # Made while training goes on: half the work, in a file half as large again.
    with Mp4Writer(path, fps, preset="ultrafast") as video:
        for t in range(num_frames):
            rows = [side_by_side(a[t], b[t], factor) for a, b in zip(first, second, strict=True)]
            video.add(_joined(rows, axis=0, gap=GAP))


def picture_of(frame: torch.Tensor) -> Picture:
    """[1, 3, H, W] in [0, 1] -> HWC uint8."""
    array: Picture = (frame[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return array


def side_by_side(original: Picture, reconstructed: Picture, factor: int = 1) -> Picture:
    """Original, reconstruction and amplified difference of one frame, each enlarged by factor."""
    cells = [
        cell.repeat(factor, axis=0).repeat(factor, axis=1)
        for cell in (original, reconstructed, difference(original, reconstructed))
    ]
    return _joined(cells, axis=1, gap=GAP)


def difference(original: Picture, reconstructed: Picture) -> Picture:
    """The amplified absolute difference."""
    distance = np.abs(original.astype(np.int16) - reconstructed.astype(np.int16))
    amplified: Picture = np.minimum(distance * DIFFERENCE_GAIN, 255).astype(np.uint8)
    return amplified


def _pair(original: Clips, reconstructed: Clips) -> tuple[Picture, Picture]:
    """The two as NTHWC arrays; ValueError where they are no pair of RGB clips."""
    # Not by way of a tensor: what comes through Ray may only be read, and PyTorch warns of it.
    first, second = (
        clips.cpu().numpy() if isinstance(clips, torch.Tensor) else clips
        for clips in (original, reconstructed)
    )
    if first.shape != second.shape:
        raise ValueError(f"clips differ in shape: {first.shape} and {second.shape}")
    if first.ndim != 5 or first.shape[2] != 3 or first.size == 0:
        raise ValueError(f"expected NTCHW RGB clips, got shape {first.shape}")
    if first.dtype != np.uint8 or second.dtype != np.uint8:
        raise ValueError(f"expected uint8 clips, got {first.dtype} and {second.dtype}")
    return first.transpose(0, 1, 3, 4, 2), second.transpose(0, 1, 3, 4, 2)


def _joined(pictures: list[Picture], axis: int, gap: int) -> Picture:
    """Pictures in a row (axis 1) or a column (axis 0), with a gap between neighbours."""
    shape = list(pictures[0].shape)
    shape[axis] = gap
    space = np.full(shape, BACKGROUND, dtype=np.uint8)
    spaced = [part for picture in pictures for part in (space, picture)]
    return np.concatenate(spaced[1:], axis=axis)


def _header(titles: list[str], width: int, cell_width: int) -> Picture:
    """The column titles of the grid: the frame above, what is shown of it below."""
    font_size = max(FONT_SIZE, cell_width // 20)
    line = font_size * 4 // 3
    image = Image.new("RGB", (width, 2 * line + GAP), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=font_size)
    frame_width = 3 * cell_width + 2 * GAP
    parts = ("original", "reconstruction", f"difference x{DIFFERENCE_GAIN}")
    for column, title in enumerate(titles):
        left = column * (frame_width + 3 * GAP)
        draw.text((left + frame_width / 2, 0), title, fill="white", font=font, anchor="ma")
        for part, name in enumerate(parts):
            centre = left + part * (cell_width + GAP) + cell_width / 2
            draw.text((centre, line), name, fill="lightgray", font=font, anchor="ma")
    return np.asarray(image)
