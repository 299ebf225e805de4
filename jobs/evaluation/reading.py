"""Videos read in a process of their own, within a time limit."""

from __future__ import annotations

from collections.abc import Generator

from data_pipeline.decoding.augment import Frames
from data_pipeline.decoding.sandbox import WindowReader
from data_pipeline.decoding.whole_video import WholeRequest, WholeVideo
from data_pipeline.decoding.window import WindowClips, WindowRequest


class VideoReader:
    """A `data_pipeline.clips.Reader` that reads whole videos, too."""

    def __init__(self, decode_seconds: float) -> None:
        """decode_seconds: for one window, or one piece of a whole video."""
        self._reader, self._seconds = WindowReader(), decode_seconds

    def __call__(self, request: WindowRequest) -> WindowClips:
        """Raises what `WindowReader.read` raises."""
        return self._reader.read(request, self._seconds)

    def whole(self, request: WholeRequest) -> tuple[WholeVideo, Generator[Frames]]:
        """Raises what `WindowReader.read_whole` raises."""
        return self._reader.read_whole(request, self._seconds)

    def close(self) -> None:
        """End its process."""
        self._reader.close()
