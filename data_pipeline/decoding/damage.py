"""All frames of a damaged video that decode as if it were sound.

Damage spreads to what is decoded after it, up to the next key frame, and so also to frames that are
shown before it: a B frame refers to the one that follows. A frame is therefore kept only when
everything that was decoded before it has turned out to be sound. After damage, decoding begins
anew with the next key frame. What the decoder itself does not notice is not noticed here either.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import av

from data_pipeline.decoding.timeline import Timeline
from data_pipeline.errors import UnusableVideoError

MAX_DELAY = 64
"""Packets that a decoder may take before their first frame comes; H.264 and HEVC need 16."""

MAX_REORDERED = 16
"""Frames that may be shown before one that they refer to."""

Item = tuple[int, av.VideoFrame] | str
"""A sound frame with its number, or what is wrong with the file after the last one."""


@dataclass(frozen=True)
class LostFrames:
    """Frames [first, end) of a file, which cannot be decoded."""

    first: int
    end: int
    reason: str

    def __str__(self) -> str:
        frames = f"frames {self.first} to {self.end - 1} are"
        if self.end - self.first == 1:
            frames = f"frame {self.first} is"
        return f"{frames} lost ({self.reason})"


class LostFramesError(UnusableVideoError):
    """Some frames of a video are lost, where all were asked for."""


class MismatchError(Exception):
    """The file or the decoder delivers something else than the timeline says."""


def within(
    items: Iterable[Item], frames: range
) -> Iterator[tuple[int, av.VideoFrame] | LostFrames]:
    """The frames of a range, and in place of those that `items` leave out, which are lost."""
    due, reason = frames.start, ""
    for item in items:
        if isinstance(item, str):
            reason = reason or item
            continue
        index, frame = item
        if index > due:
            yield LostFrames(due, min(index, frames.stop), reason or "damaged")
        if index in frames:
            yield index, frame
        due, reason = max(due, index + 1), ""
        if due >= frames.stop:
            return
    yield LostFrames(due, frames.stop, reason or "the file ends early")


def sound_frames(
    packets: Iterable[av.Packet], context: av.VideoCodecContext, timeline: Timeline
) -> Iterator[Item]:
    """The sound frames of a file, numbered by its timeline, from its packets on.

    Raises MismatchError where the timeline proves wrong: before any damage is told, every frame
    up to there has been given.
    """
    feed = _Feed(packets)
    head = feed.next_key(after=-1)
    while head is not None:
        run = _Run(feed, context, timeline, *head)
        yield from run.frames()
        if run.fault is None:
            return
        place, reason = run.fault
        yield reason
        head = feed.next_key(after=place)


def sound_start(frames: Iterable[av.VideoFrame]) -> Iterator[Item]:
    """The frames of a file without a timeline, up to damage: those after it have no number."""
    held: deque[tuple[int, av.VideoFrame]] = deque()
    try:
        for index, frame in enumerate(frames):
            if frame.is_corrupt:
                yield "damaged; what follows cannot be numbered in a file like this"
                return
            held.append((index, frame))
            if len(held) > MAX_REORDERED:
                yield held.popleft()
    except av.InvalidDataError as error:
        yield f"{error.strerror}; what follows cannot be numbered in a file like this"
        return
    yield from held


class _Feed:
    """The packets of a file with their places; those that may be needed again can be taken back."""

    def __init__(self, packets: Iterable[av.Packet]) -> None:
        self._source = enumerate(packet for packet in packets if packet.size > 0)
        self._ahead: deque[tuple[int, av.Packet]] = deque()
        self._taken: deque[tuple[int, av.Packet]] = deque()
        self.error = ""

    def take(self) -> tuple[int, av.Packet] | None:
        """The next packet; None at the end, or where the file cannot be read on."""
        try:
            item = self._ahead.popleft() if self._ahead else next(self._source, None)
        except av.InvalidDataError as error:
            self.error = f"cannot be read further: {error.strerror}"
            item = None
        if item is not None:
            self._taken.append(item)
        return item

    def forget(self, place: int) -> None:
        """Packets up to `place` are not needed again."""
        while self._taken and self._taken[0][0] <= place:
            self._taken.popleft()

    def next_key(self, after: int) -> tuple[int, av.Packet] | None:
        """Take the first key packet after a place; the first of all is taken as it is."""
        self._ahead.extendleft(reversed(self._taken))
        self._taken.clear()
        while item := self.take():
            place, packet = item
            self.forget(place - 1)
            if place > after and (packet.is_keyframe or place == 0):
                return item
        return None


class _Run:
    """Decoding from a key packet up to damage, or to the end."""

    fault: tuple[int, str] | None = None
    """The place of the first packet that is damaged, and how; None at the end of the file."""

    def __init__(
        self,
        feed: _Feed,
        context: av.VideoCodecContext,
        timeline: Timeline,
        place: int,
        head: av.Packet,
    ) -> None:
        self._feed, self._context, self._timeline = feed, context, timeline
        self._place, self._head = place, head
        self._waiting: dict[int, int] = {}
        """Stamps and places of packets whose frames have not come."""
        self._held: deque[tuple[int, int, av.VideoFrame]] = deque()
        """Place, number and frame of what is not yet known to be sound."""
        self._last: int | None = None
        self._left_out: set[int] = set()
        """Stamps of frames that were passed over without a word from the decoder."""

    def frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """The sound frames, with their numbers."""
        self._context.flush_buffers()
        item: tuple[int, av.Packet] | None = (self._place, self._head)
        while item is not None and self.fault is None:
            place, packet = item
            self._expect(place, packet)
            self._decode(place, packet)
            if len(self._waiting) > MAX_DELAY:
                self._blame(min(self._waiting.values()), "damaged: no frame comes of it")
            if self.fault is None:
                floor = min(self._waiting.values(), default=place + 1)
                self._feed.forget(floor)
                while self._held and self._held[0][0] < floor:
                    yield self._held.popleft()[1:]
                item = self._feed.take()
        self._decode(place, None)
        if self._waiting:
            self._blame(min(self._waiting.values()), "damaged: no frame comes of it")
        if self.fault is None and self._feed.error:
            self.fault = (place, self._feed.error)
        for place, number, frame in self._held:
            if self.fault is None or place < self.fault[0]:
                yield number, frame
        self._context.flush_buffers()

    def _blame(self, place: int, reason: str) -> None:
        if self.fault is None or place < self.fault[0]:
            self.fault = (place, reason)

    def _expect(self, place: int, packet: av.Packet) -> None:
        """Note that a frame is to come. Raises MismatchError."""
        if not self._timeline.is_packet(place, packet):
            raise MismatchError("a packet is not the one that the timeline has")
        if place in self._timeline.hidden:
            return
        if packet.pts is None or self._timeline.number_of(packet.pts) is None:
            raise MismatchError("a packet has no number")
        if self._last is not None and packet.pts <= self._last:
            raise MismatchError("a packet comes after it should be shown")
        # Others are decoded after the key frame and shown before it: they refer to what is lost.
        if packet.pts >= self._head.pts:
            self._waiting[packet.pts] = place

    def _decode(self, place: int, packet: av.Packet | None) -> None:
        try:
            frames = self._context.decode(packet)
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self._left_out.clear()
            self._blame(place, f"damaged: {error.strerror}")
            return
        for frame in frames:
            self._sort_in(frame)

    def _sort_in(self, frame: av.VideoFrame) -> None:
        if frame.pts is not None and frame.pts < self._head.pts:
            return
        place = self._waiting.pop(frame.pts, None)
        if place is None:
            # In a damaged file a frame may come at any time.
            if self.fault is None or frame.pts in self._left_out:
                raise MismatchError("a frame is of no packet, or comes after it should be shown")
            return
        is_late = [stamp for stamp in self._waiting if stamp < frame.pts]
        if self.fault is None:
            self._left_out.update(is_late)
        for stamp in is_late:
            self._blame(self._waiting.pop(stamp), "damaged: no frame comes of it")
        if frame.is_corrupt:
            self._left_out.clear()
            self._blame(place, "damaged")
        if self._last is None and not (frame.key_frame or self._place == 0):
            self._blame(place, "damaged: a key frame is none")
        self._last = frame.pts
        number = self._timeline.number_of(frame.pts)
        assert number is not None
        self._held.append((place, number, frame))
