"""Videos that any browser plays: H.264, yuv420p, BT.709, the index first; written frame by frame.

A frame is uint8 HWC RGB.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""HWC RGB, or one such frame after the other (THWC)."""

DIFFERENCE_GAIN = 5
"""Factor on the absolute difference; what passes 255 is cut off there."""

SMALLEST_SIDE = 256
"""Smaller frames are enlarged by a whole factor: a pixel stays a pixel."""

GAP = 4
"""Pixels between neighbours."""

BACKGROUND = 24


class Mp4Writer:
    """Writes one video; a context manager. Memory does not depend on its length."""

    def __init__(
        self, path: Path, fps: float, smallest: int = SMALLEST_SIDE, preset: str = "veryfast"
    ) -> None:
        """fps: above 0. smallest: see `enlarged`; 1 leaves the size. preset: x264's."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001)
        )
        self._smallest, self._preset = smallest, preset
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._begun and kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def add(self, picture: Picture) -> None:
        """The next frame; all have the size of the first."""
        picture = _even(enlarged(picture, self._smallest))
        if not self._begun:
            self._begin(picture.shape[0], picture.shape[1])
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        converted = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        self._container.mux(self._stream.encode(converted))

    def _begin(self, height: int, width: int) -> None:
        self._begun = True
        stream = self._stream
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "16", "preset": self._preset}
        # Untagged, players guess the colours from the picture's size.
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_primaries = ColorPrimaries.BT709
        stream.codec_context.color_trc = ColorTrc.BT709
        stream.codec_context.color_range = ColorRange.MPEG


def difference(original: Picture, reconstructed: Picture) -> Picture:
    """The amplified absolute difference."""
    distance = np.abs(original.astype(np.int16) - reconstructed.astype(np.int16))
    cut: Picture = np.minimum(distance * DIFFERENCE_GAIN, 255).astype(np.uint8)
    return cut


def side_by_side(original: Picture, reconstructed: Picture) -> Picture:
    """Original, reconstruction, amplified difference."""
    cells = [original, reconstructed, difference(original, reconstructed)]
    gap = np.full((original.shape[0], GAP, 3), BACKGROUND, np.uint8)
    return np.concatenate([cells[0], gap, cells[1], gap, cells[2]], axis=1)


def enlarged(picture: Picture, smallest: int = SMALLEST_SIDE) -> Picture:
    """By the whole factor that brings its height to `smallest`, if it is less."""
    factor = max(1, -(-smallest // picture.shape[0]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _even(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
