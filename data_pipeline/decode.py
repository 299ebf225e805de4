"""Chosen frames of a video file, bit for bit as a decode from its first frame gives them.

Frame k of a video is the k-th that a decode from the start yields. The timeline (the
presentation time stamp of every frame, in order) tells where frame k is, so that decoding can
begin at the key frame before it. Where the timeline cannot be known, or the decoder delivers
something else than it promises, the file is decoded from the start: slower and always right.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import Self

import av
import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Timeline = NDArray[np.int64]


class UnusableVideoError(Exception):
    """A video from which no clip can be made; the text is the reason, without the path."""


class VideoFile:
    """One video opened for reading; a context manager.

    Raises UnusableVideoError, here and in every method, where the file is missing, has no video
    stream or cannot be decoded.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel over its height; 1.0 for nearly every video."""
        return float(self._stream.sample_aspect_ratio or 1)

    @cached_property
    def num_frames(self) -> int:
        """Number of frames of the video: the file's own, never an annotation's."""
        if self._timeline is not None:
            return len(self._timeline)
        with _decoding_errors():
            return sum(1 for _ in self._decode_all())

    def frames(self, indices: list[int]) -> list[av.VideoFrame]:
        """The frames at `indices` (increasing), as the decoder gives them."""
        with _decoding_errors():
            frames = self._from_key_frame(indices)
            if frames is None:
                logger.debug("decoding %s from its start", self._path)
                frames = self._from_start(indices)
            return frames

    def _open(self) -> None:
        try:
            # Titles in a broken encoding are no reason to refuse a video.
            self._container = av.open(self._path, metadata_errors="replace")
        except FileNotFoundError as error:
            raise UnusableVideoError("missing") from error
        except (av.FFmpegError, OSError) as error:
            raise UnusableVideoError(f"cannot be opened: {_reason(error)}") from error
        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
            self._container.close()
            raise UnusableVideoError("has no video stream")
        self._stream = streams[0]
        # Parallelism is over tasks: a decoder with threads of its own would take CPUs that the
        # scheduler gave to somebody else.
        self._stream.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1

    def _reopen(self) -> None:
        """Back to the first frame, also in formats that cannot seek."""
        self._container.close()
        self._open()

    @cached_property
    def _timeline(self) -> Timeline | None:
        """Time stamp of every frame in order of presentation; None where it cannot be known."""
        with _decoding_errors():
            timeline = _regular_timeline(self._stream)
            if timeline is None or not self._starts_at(int(timeline[0])):
                self._reopen()
                timeline = self._scan_timeline()
        return timeline

    def _starts_at(self, stamp: int) -> bool:
        """Whether the first frame is shown at `stamp`; headers are wrong about it now and then.

        No frame is shown before it is decoded, so the search ends at the first packet that is
        decoded after `stamp`.
        """
        stamps = []
        for packet in self._container.demux(self._stream):
            if packet.pts is None or packet.dts is None:
                break
            stamps.append(packet.pts)
            if packet.dts > stamp:
                break
        return bool(stamps) and min(stamps) == stamp

    def _scan_timeline(self) -> Timeline | None:
        """The time stamps of all packets; nothing is decoded. Leaves the file at its end."""
        stamps = []
        for packet in self._container.demux(self._stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                return None
            stamps.append(packet.pts)
        timeline = np.unique(np.array(stamps, np.int64))
        return timeline if len(timeline) == len(stamps) > 0 else None

    def _from_key_frame(self, indices: list[int]) -> list[av.VideoFrame] | None:
        """The frames by way of the key frame before them; None where anything does not add up."""
        if self._timeline is None or indices[-1] >= len(self._timeline):
            return None
        wanted = self._timeline[indices].tolist()
        window = self._timeline[indices[0] : indices[-1] + 1]
        try:
            self._container.seek(wanted[0], stream=self._stream)
        except av.FFmpegError:
            return None

        context = self._stream.codec_context
        remaining = set(wanted)
        found: dict[int, av.VideoFrame] = {}
        packet_stamps: set[int] = set()
        begun = False
        for packet in self._container.demux(self._stream):
            if packet.pts is not None:
                packet_stamps.add(packet.pts)
            # Frames that no other frame refers to need not be decoded unless they are wanted.
            needed = packet.pts is None or packet.pts in remaining
            context.skip_frame = "DEFAULT" if needed else "NONREF"
            for frame in packet.decode():
                if not begun:
                    if not frame.key_frame or frame.pts is None or frame.pts > wanted[0]:
                        return None
                    begun = True
                if frame.pts in remaining:
                    if frame.is_corrupt:
                        return None
                    found[frame.pts] = frame
                    remaining.discard(frame.pts)
            if not remaining:
                break
        inside = {stamp for stamp in packet_stamps if wanted[0] <= stamp <= wanted[-1]}
        if remaining or inside != set(window.tolist()):
            return None
        return [found[stamp] for stamp in wanted]

    def _from_start(self, indices: list[int]) -> list[av.VideoFrame]:
        """The frames by counting from the first one."""
        wanted = set(indices)
        frames = []
        count = 0
        for count, frame in enumerate(self._decode_all(), start=1):
            if count - 1 in wanted:
                if frame.is_corrupt:
                    raise UnusableVideoError(f"frame {count - 1} is damaged")
                frames.append(frame)
            if len(frames) == len(indices):
                return frames
        raise UnusableVideoError(
            f"ends after {count} frames where its header promises {self.num_frames}"
        )

    def _decode_all(self) -> Iterator[av.VideoFrame]:
        self._reopen()
        yield from self._container.decode(self._stream)


def choose_window(
    span: tuple[int, int], start: float, step: int, num_frames: int
) -> tuple[int, int]:
    """The first frame and the step of a clip inside of the frames [span[0], span[1]).

    `start` in [0, 1) chooses among the starts that are possible. A step that is too large for
    the span becomes the largest that fits.

    Raises UnusableVideoError where the clip does not fit even at step 1.
    """
    available = span[1] - span[0]
    if available < num_frames:
        raise UnusableVideoError(
            f"too short: has {available} frames, a clip needs {num_frames} frames at step 1"
        )
    if num_frames > 1:
        step = min(step, (available - 1) // (num_frames - 1))
    starts = available - (num_frames - 1) * step
    return span[0] + int(start * starts), step


def _regular_timeline(stream: av.VideoStream) -> Timeline | None:
    """The timeline of a video whose header lists every frame, evenly spaced; else None.

    The header of mp4 and mov lists the decoding time stamps. Where these are evenly spaced, the
    presentation time stamps are the same comb, moved to the stream's start.
    """
    entries = stream.index_entries
    if stream.start_time is None or len(entries) == 0 or len(entries) != stream.frames:
        return None
    stamps = np.empty(len(entries), np.int64)
    for index, entry in enumerate(entries):
        if entry.is_discard:
            return None
        stamps[index] = entry.timestamp
    steps = np.diff(stamps)
    if len(steps) and (steps[0] <= 0 or (steps != steps[0]).any()):
        return None
    timeline: Timeline = stamps - stamps[0] + stream.start_time
    return timeline


@contextmanager
def _decoding_errors() -> Iterator[None]:
    """FFmpeg's errors as a verdict on the video."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise UnusableVideoError(f"cannot be decoded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
