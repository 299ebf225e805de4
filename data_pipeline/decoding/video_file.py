"""Selected frames of a video file, bit for bit as a decode from its first frame gives them.

Frame k of a video is the k-th that a decode from the start yields. The timeline says where frame k
is, so that decoding can begin at the key frame before it. If the timeline is unknown, or does not
match what the file or the decoder delivers, the file is decoded from the start: slower, but always
right.
"""

import logging
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from types import TracebackType
from typing import Self

import av

from data_pipeline.decoding.damage import (
    LostFrames,
    MismatchError,
    sound_frames,
    sound_start,
    within,
)
from data_pipeline.decoding.media import BEST, open_video, translate_errors
from data_pipeline.decoding.timeline import Timeline, header_timeline, scan_timeline
from data_pipeline.errors import UnusableVideoError
from data_pipeline.videos.storage import open_media

__all__ = ["Sink", "UnusableVideoError", "VideoFile"]

logger = logging.getLogger(__name__)

MAX_KEYS = 3
"""Key frames tried for a read: the nearest in decoding order may be shown after the frame."""

Sink = Callable[[int, av.VideoFrame], None]
"""Called with the index of a frame, and the decoded frame."""


class VideoFile:
    """One video opened for reading; a context manager.

    The constructor and every method raise UnusableVideoError if the file is missing, has no video
    stream, has frames that are too large, or cannot be decoded.
    """

    decoded: int
    """Frames that came out of the decoder so far, wanted or not."""

    def __init__(self, location: str, stream: int = BEST) -> None:
        """Open a path or s3://bucket/key. stream: see `open_video`."""
        self.decoded = 0
        self._number = stream
        with translate_errors("cannot be opened"):
            self._media = open_media(location)
        try:
            self._container, self._stream = open_video(self._media, self._number)
        except UnusableVideoError:
            self._close_media()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()
        self._close_media()

    @property
    def pixel_aspect(self) -> float:
        """Width of a pixel over its height; 1.0 for nearly every video."""
        return float(self._stream.sample_aspect_ratio or 1)

    @property
    def rate(self) -> float:
        """Frames a second."""
        stream = self._stream
        return float(stream.average_rate or stream.guessed_rate or 24)

    @cached_property
    def num_frames(self) -> int:
        """Number of frames of the video: the file's own, never an annotation's."""
        if self._timeline is not None:
            return len(self._timeline.stamps)
        with translate_errors("cannot be decoded"):
            return sum(1 for _ in self._decode_all())

    def read(self, indices: Sequence[int], sink: Sink) -> None:
        """Pass the frames at `indices` (increasing, at least one) to `sink`, one by one.

        If reading from a key frame fails half-way, all frames are passed again from the first: a
        later frame of the same index replaces the earlier one. FFmpeg's errors in `sink` are taken
        for the video's.
        """
        with translate_errors("cannot be decoded"):
            if self._timeline is not None and indices[-1] < len(self._timeline.stamps):
                try:
                    self._read_by_key_frame(self._timeline, indices, sink)
                except (MismatchError, av.FFmpegError) as error:
                    logger.debug("decoding from the start: %r", error)
                else:
                    return
            self._read_from_start(indices, sink)

    @cached_property
    def frames_to_walk(self) -> int:
        """Number of frames, sound or not: that of a damaged file without a timeline is a guess."""
        if self._timeline is not None:
            return len(self._timeline.stamps) + self._frames_cut_off
        with translate_errors("cannot be decoded"):
            return sum(1 for _ in self._decode_all(pass_over=True))

    def walk(self, frames: range) -> Iterator[tuple[int, av.VideoFrame] | LostFrames]:
        """The frames of a range with their numbers, one by one, by decoding from the first frame of
        the video; in place of those that cannot be decoded, what is lost, and why.

        `read` is faster for a few frames far into a file, and takes no damage.
        """
        with translate_errors("cannot be decoded"):
            yield from within(self._sound_frames(), frames)

    def first_frame(self) -> av.VideoFrame:
        """The first that can be decoded."""
        with translate_errors("cannot be decoded"):
            frame = next(self._decode_all(pass_over=True), None)
        if frame is None:
            raise UnusableVideoError("has no frame")
        return frame

    def _sound_frames(self) -> Iterator[tuple[int, av.VideoFrame] | str]:
        given, is_whole = 0, True
        if self._timeline is not None:
            self._reopen()
            context = self._stream.codec_context
            try:
                for item in sound_frames(self._demux(), context, self._timeline):
                    is_whole = is_whole and not isinstance(item, str)
                    given += 1
                    yield item
            except MismatchError as error:
                logger.debug("counting the frames: %r", error)
                if not is_whole:
                    yield f"damaged; what follows cannot be numbered: {error}"
                    return
            else:
                return
        yield from islice(sound_start(self._decode_all()), given, None)

    @property
    def _frames_cut_off(self) -> int:
        """Frames that the header of an mp4 or mov lists and the file does not have."""
        assert self._timeline is not None
        if "mp4" not in self._container.format.name:
            return 0
        return max(0, int(self._stream.frames) - len(self._timeline.tags))

    def _reopen(self) -> None:
        """Return to the first frame, also in formats that cannot seek."""
        self._container.close()
        self._container, self._stream = open_video(self._media, self._number)

    def _close_media(self) -> None:
        if not isinstance(self._media, str):
            self._media.close()

    @cached_property
    def _timeline(self) -> Timeline | None:
        """None if it is unknown or does not match the frames of the decoder."""
        with translate_errors("cannot be decoded"):
            timeline = header_timeline(self._stream)
            if timeline is not None and self._start_matches(timeline):
                return timeline
            self._reopen()
            timeline = scan_timeline(self._stream, self._demux())
            if timeline is None:
                return None
            self._reopen()
            return timeline if self._start_matches(timeline) else None

    def _start_matches(self, timeline: Timeline) -> bool:
        """Whether the file's first two packets are the timeline's first two frames.

        Decoders drop frames whose reference frames the file lacks, and a packet may hold half a
        frame, or two: then the frames cannot be numbered by their packets.
        """
        stamps: list[int | None] = []
        frames: list[int | None] = []
        context = self._stream.codec_context
        try:
            for place, packet in enumerate(self._demux()):
                if packet.size > 0 and place not in timeline.hidden:
                    stamps.append(packet.pts)
                frames += [frame.pts for frame in self._counted(packet.decode())]
                if len(stamps) == 2:
                    frames += [frame.pts for frame in self._counted(context.decode(None))]
                    break
        except av.FFmpegError:
            return False
        finally:
            context.flush_buffers()
        return frames[:1] == stamps[:1] == [timeline.stamps[0]] and set(frames) == set(stamps)

    def _read_by_key_frame(self, timeline: Timeline, indices: Sequence[int], sink: Sink) -> None:
        """Decode from the key frame before the first index. Raises MismatchError."""
        wanted = frozenset(timeline.stamps[list(indices)].tolist())
        pending = deque(indices)
        for index, frame in self._frames_from_key(timeline, indices[0], wanted):
            if index > pending[0]:
                raise MismatchError("a frame is left out")
            if index == pending[0]:
                sink(pending.popleft(), frame)
            if not pending:
                return
        raise MismatchError("the file ends too early")

    def _frames_from_key(
        self, timeline: Timeline, first: int, wanted: frozenset[int]
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames and their indices, from a key frame on that is frame `first` or before it.

        Non-reference frames are skipped unless their timestamp is in `wanted`. An index is the
        number of packets displayed before: those before the key frame in the file, and those after
        it with an earlier timestamp.
        """
        for place, stamp in islice(timeline.keys_before(first), MAX_KEYS):
            packets = self._packets_from(timeline, place, stamp)
            head = next(packets)
            if head.pts <= timeline.stamps[first]:
                break
        else:
            raise MismatchError("no key frame")

        context = self._stream.codec_context
        before, stamps = timeline.shown_before(place), list[int]()
        last: int | None = None
        for number, packet in enumerate(chain([head], packets), start=place):
            if packet.size > 0 and number not in timeline.hidden:
                if last is not None and packet.pts <= last:
                    raise MismatchError("a packet comes after it should be shown")
                insort(stamps, packet.pts)
            needed = packet is head or packet.size == 0 or packet.pts in wanted
            context.skip_frame = "DEFAULT" if needed else "NONREF"
            for frame in self._counted(packet.decode()):
                if frame.pts is None:
                    raise MismatchError("a frame has no stamp")
                if frame.pts < head.pts and last is None:
                    # Decoded after the key frame but displayed before it.
                    continue
                if last is None and not (frame.key_frame and frame.pts == head.pts):
                    raise MismatchError("the key frame does not come first")
                if frame.is_corrupt or (last is not None and frame.pts <= last):
                    raise MismatchError("a frame is damaged or out of order")
                last = frame.pts
                yield before + bisect_left(stamps, frame.pts), frame

    def _packets_from(self, timeline: Timeline, place: int, stamp: int) -> Iterator[av.Packet]:
        """The packets from `place` on, at `stamp`, and the empty one at the end of the file."""
        self._container.seek(stamp, stream=self._stream)
        begun = False
        for packet in self._demux():
            found = packet.pts is not None and timeline.is_packet(place, packet)
            if begun and packet.size > 0 and not found:
                raise MismatchError("a packet is not the one that follows")
            begun = begun or found
            if begun:
                place += packet.size > 0
                yield packet
        if not begun:
            raise MismatchError("the key frame's packet is not found")

    def _read_from_start(self, indices: Sequence[int], sink: Sink) -> None:
        """Decode from the first frame, and count."""
        wanted = frozenset(indices)
        count, damaged = 0, False
        for count, frame in enumerate(self._decode_all(), start=1):
            # Damage spreads to the following frames, up to the next key frame.
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            if count - 1 in wanted:
                if damaged:
                    raise UnusableVideoError(f"frame {count - 1} is damaged")
                sink(count - 1, frame)
            if count - 1 == indices[-1]:
                return
        raise UnusableVideoError(
            f"ends after {count} frames where its header promises {self.num_frames}"
        )

    def _decode_all(self, pass_over: bool = False) -> Iterator[av.VideoFrame]:
        """pass_over: whether packets that cannot be decoded are left out."""
        self._reopen()
        begun, failure = False, None
        for packet in self._demux():
            try:
                frames = packet.decode()
            except av.InvalidDataError as error:
                # A recording may begin with frames whose reference frames it lacks.
                if begun and not pass_over:
                    raise
                failure = error
                continue
            begun = begun or bool(frames)
            yield from self._counted(frames)
        if failure is not None and not begun:
            raise failure

    def _demux(self) -> Iterator[av.Packet]:
        """The stream's packets from here on, and an empty one at the end of the file."""
        for packet in self._container.demux(self._stream):
            yield packet
            # After this packet PyAV fails if more streams have appeared in the file on the way.
            if packet.size == 0 and packet.dts is None:
                return

    def _counted(self, frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for frame in frames:
            self.decoded += 1
            yield frame
