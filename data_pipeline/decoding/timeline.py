"""Where each frame of a video is: in the order of presentation, and among the file's packets.

Times are in units of the stream's time base.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

KEY, DISCARD = 1, 2
"""FFmpeg's flags of an index entry."""

EMPTY_FRAME_BYTES = 10
"""An MPEG-4 packet of fewer bytes may say that no frame was coded."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """The frames of a video in both orders: N frames are shown, P packets are decoded."""

    stamps: Integers
    """[N], increasing: frame k is the one that is shown at stamps[k]."""

    tags: Integers
    """[P]: a stamp of each packet, in the order of the file. With its size it tells which it is."""

    tagged_by: Literal["pts", "dts"]
    """Which stamp that is."""

    sizes: Integers
    """[P]: bytes of each packet."""

    keys: Integers
    """[K]: places, among the P packets, of those that decoding can begin with."""

    key_stamps: Integers
    """[K]: where in time to look for them."""

    hidden: frozenset[int]
    """Places of the packets that are decoded and never shown."""

    def number_of(self, stamp: int) -> int | None:
        """Of the frame that is shown at `stamp`; None if none is."""
        number = int(np.searchsorted(self.stamps, stamp))
        there = number < len(self.stamps) and self.stamps[number] == stamp
        return number if there else None

    def keys_before(self, frame: int) -> Iterator[tuple[int, int]]:
        """Place and stamp of the key packets that `frame` may depend on, the nearest first."""
        # A frame is not shown before it is decoded.
        usable = self.key_stamps <= self.stamps[frame]
        places, stamps = self.keys[usable][::-1], self.key_stamps[usable][::-1]
        yield from zip(places.tolist(), stamps.tolist(), strict=True)

    def shown_before(self, place: int) -> int:
        """How many of the packets before `place` are frames that are shown."""
        return place - sum(hidden < place for hidden in self.hidden)

    def is_packet(self, place: int, packet: av.Packet) -> bool:
        """Whether `packet` is the one at `place`."""
        return (
            place < len(self.tags)
            and getattr(packet, self.tagged_by) == self.tags[place]
            and packet.size == self.sizes[place]
        )


def header_timeline(stream: av.VideoStream) -> Timeline | None:
    """The timeline of a file whose header lists every packet, evenly spaced; else None.

    The header of mp4 and mov lists the decoding stamps. Where these are evenly spaced, the
    frames are shown at the same comb, moved to the stream's start.
    """
    entries = stream.index_entries
    count = len(entries)
    if stream.start_time is None or count == 0 or count != stream.frames:
        return None
    # One attribute after the other: a file that is not even takes the time of one.
    stamps = np.fromiter((entry.timestamp for entry in entries), np.int64, count)
    steps = np.diff(stamps)
    if count > 1 and (steps[0] <= 0 or (steps != steps[0]).any()):
        return None
    flags = np.fromiter((entry.flags for entry in entries), np.int64, count)
    sizes = np.fromiter((entry.size for entry in entries), np.int64, count)
    if (flags & DISCARD).any() or stream.codec_context.name == "vp8" or _has_empty(stream, sizes):
        return None
    keys = np.flatnonzero(flags & KEY)
    return Timeline(
        stamps=stamps - stamps[0] + stream.start_time,
        tags=stamps,
        tagged_by="dts",
        sizes=sizes,
        keys=keys,
        key_stamps=stamps[keys],
        hidden=frozenset(),
    )


def scan_timeline(stream: av.VideoStream, packets: Iterable[av.Packet]) -> Timeline | None:
    """The timeline of a file from all of its packets; None where these do not tell."""
    rows = []
    for packet in packets:
        if packet.size == 0:
            continue
        if packet.pts is None:
            return None
        # Some containers are searched by decoding stamps, and only some have any.
        seek = packet.pts if packet.dts is None else min(packet.dts, packet.pts)
        is_hidden = packet.is_discard or _is_hidden(stream, packet)
        rows.append((packet.pts, seek, packet.size, packet.is_keyframe, is_hidden))
    if not rows:
        return None
    tags, seeks, sizes, is_key, is_hidden = np.array(rows, np.int64).T
    shown = tags[is_hidden == 0]
    stamps = np.unique(shown)
    if not 0 < len(stamps) == len(shown) or _has_empty(stream, sizes):
        return None
    keys = np.flatnonzero(is_key)
    return Timeline(
        stamps=stamps,
        tags=tags,
        tagged_by="pts",
        sizes=sizes,
        keys=keys,
        key_stamps=seeks[keys],
        hidden=frozenset(np.flatnonzero(is_hidden).tolist()),
    )


def _is_hidden(stream: av.VideoStream, packet: av.Packet) -> bool:
    """Whether a VP8 packet is a frame for reference only (RFC 6386, 9.1: show_frame is 0).

    VP9 and AV1 put such frames into the packet of one that is shown.
    """
    return stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10


def _has_empty(stream: av.VideoStream, sizes: Integers) -> bool:
    """Whether some packets may hold no frame."""
    least = EMPTY_FRAME_BYTES if stream.codec_context.name == "mpeg4" else 1
    return bool((sizes < least).any())
