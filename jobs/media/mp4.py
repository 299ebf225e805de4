"""Videos that any browser plays: H.264, yuv420p, BT.709, the index first; written frame by frame.

A frame is uint8 HWC RGB.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""HWC RGB, or one such frame after the other (THWC)."""

SMALLEST_SIDE = 256
"""Smaller frames are enlarged by a whole factor: a pixel stays a pixel."""


class Mp4Writer:
    """Writes one video; a context manager. Memory does not depend on its length."""

    def __init__(
        self, path: Path, fps: float, smallest: int = SMALLEST_SIDE, preset: str = "veryfast"
    ) -> None:
        """fps: above 0. smallest: height below which frames are enlarged; 1 leaves the size.
        preset: x264's."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = stream = self._container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001)
        )
        self._smallest = smallest
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16", "preset": preset}
        # Untagged, players guess the colours from the picture's size.
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_primaries = ColorPrimaries.BT709
        stream.codec_context.color_trc = ColorTrc.BT709
        stream.codec_context.color_range = ColorRange.MPEG

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._stream.codec_context.is_open and kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def add(self, picture: Picture) -> None:
        """The next frame; all have the size of the first."""
        factor = max(1, -(-self._smallest // picture.shape[0]))
        picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
        height, width = picture.shape[:2]
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if not self._stream.codec_context.is_open:
            self._stream.height, self._stream.width = picture.shape[:2]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        converted = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        self._container.mux(self._stream.encode(converted))
