"""Videos of many kinds, encoded on the spot: what containers, codecs and cameras come up with."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np

from tests.helpers.data_videos import Frames, moving_frames

COUNT = 48
X264 = "threads=1:mbtree=0:"
X265 = "pools=none:frame-threads=1:log-level=none:keyint=12:min-keyint=12:bframes=3:"
UNEVEN = tuple(k + (k > 9) * 4 + k // 7 for k in range(COUNT))


@dataclass(frozen=True)
class Kind:
    """How a file is made and what is to be expected of it."""

    name: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pixel_format: str = "yuv420p"
    gop: int = 12
    size: tuple[int, int] = (48, 64)
    """(height, width)"""
    rate: int = 24
    stamps: tuple[int, ...] = tuple(range(COUNT))
    """When each frame is shown, in units of 1 / rate s."""
    sound: str = ""
    """Codec of a sound stream that comes first."""
    rotation: int = 0
    container: str | None = None
    container_options: dict[str, str] = field(default_factory=dict)
    direct: bool = True
    """Whether a window is reached by way of a key frame, without decoding from the start."""


@contextmanager
def _ordinary_priority() -> Iterator[None]:
    """SVT-AV1 puts the thread that opens it under real-time scheduling where it may, as root may.
    It would stay there, with all that this thread starts later, and starve the whole machine."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def make(kind: Kind, folder: Path) -> Path:
    """Encode COUNT moving frames."""
    path = folder / kind.name
    with (
        _ordinary_priority(),
        av.open(
            str(path), "w", format=kind.container, container_options=kind.container_options
        ) as file,
    ):
        sound = file.add_stream(kind.sound, rate=48000) if kind.sound else None
        stream = file.add_stream(kind.codec, rate=kind.rate, options=kind.options)
        stream.height, stream.width = kind.size
        stream.pix_fmt = kind.pixel_format
        stream.gop_size = kind.gop
        stream.codec_context.thread_count = 1
        if kind.rotation:
            stream.set_display_rotation(kind.rotation)
        if sound is not None:
            _write_silence(file, sound)
        for picture, stamp in zip(moving_frames(COUNT, *kind.size), kind.stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, kind.rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def remux(
    source: Path,
    path: Path,
    *,
    first: int = 0,
    shift: int = 0,
    change: Callable[[int, bytes], bytes] = lambda _, data: data,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Copy the packets from number `first` on, moved in time and changed, to another container."""
    with (
        av.open(str(source)) as old,
        av.open(str(path), "w", container_options=container_options or {}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size == 0 or number < first:
                continue
            copy = av.Packet(change(number, bytes(packet)))
            copy.pts, copy.dts = packet.pts + shift, packet.dts + shift
            copy.time_base, copy.duration = packet.time_base, packet.duration or 0
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            new.mux(copy)
    return path


def hide_frames(number: int, packet: bytes) -> bytes:
    """Make some VP8 frames ones for reference only (RFC 6386, 9.1)."""
    return bytes([packet[0] & ~0x10]) + packet[1:] if number in (5, 17) else packet


def leave_out_frames(number: int, packet: bytes) -> bytes:
    """Replace some MPEG-4 frames by the note that none was coded (ISO 14496-2, vop_coded)."""
    if number not in (5, 17):
        return packet
    bits = "".join(f"{byte:08b}" for byte in packet[4:8])
    # Coding type, seconds, a marker, the time in 5 bits (24 to the second), a marker, coded: no.
    bits = bits[: bits.index("0", 2) + 2 + 5] + "10"
    bits += "0" + "1" * (-(len(bits) + 1) % 8)
    return packet[:4] + int(bits, 2).to_bytes(len(bits) // 8, "big")


def spoil_the_beginning(number: int, packet: bytes) -> bytes:
    """Make the first packets of H.264 in mkv or mp4 such that no decoder takes them."""
    return packet[:4] + b"\xff" * (len(packet) - 4) if number < 8 else packet


def write_two_streams(path: Path) -> Path:
    """160x90 first, and 640x360 second, which is marked as the one to show."""
    with av.open(str(path), "w") as file:
        streams = []
        for width, height in ((160, 90), (640, 360)):
            stream = file.add_stream("mpeg4", rate=24)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        streams[1].disposition = av.stream.Disposition.default
        for number in range(4):
            for stream in streams:
                picture = moving_frames(4, stream.height, stream.width)[number]
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 24)
                file.mux(stream.encode(frame))
        for stream in streams:
            file.mux(stream.encode(None))
    return path


def spoil(*numbers: int, seed: int = 0) -> Callable[[int, bytes], bytes]:
    """Change the later part of the payload of these packets."""
    random = Random(seed)

    def change(number: int, packet: bytes) -> bytes:
        if number not in numbers:
            return packet
        data = bytearray(packet)
        # Not the beginning: the first packet of x264 has its settings there, in words.
        for place in range(len(data) // 2, len(data) - 1):
            data[place] ^= random.randrange(1, 256)
        return bytes(data)

    return change


def spoil_headers(*numbers: int) -> Callable[[int, bytes], bytes]:
    """Make these packets of H.264 in mp4 such that no decoder takes them: their slice begins at a
    macroblock far outside of the picture (ITU-T H.264, 7.3.3).

    What `spoil` makes of a small packet decodes now and then, and which ones are small depends on
    the processor: x264 computes differently with other instructions.
    """

    def change(number: int, packet: bytes) -> bytes:
        # Four bytes of length, one of the unit's type; 15 zero bits begin a number from 32,767 on.
        return packet[:5] + b"\x00\x01" + packet[7:] if number in numbers else packet

    return change


def planes(frame: av.VideoFrame) -> tuple[str, list[Frames]]:
    """All that is seen of a frame, before any conversion: its format and its planes, in bytes."""
    step = 2 if frame.format.components[0].bits > 8 else 1
    rows = [
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        for plane in frame.planes
    ]
    return frame.format.name, [
        row[:, : plane.width * step].copy() for row, plane in zip(rows, frame.planes, strict=True)
    ]


def sequential_planes(path: Path) -> list[tuple[str, list[Frames]]]:
    """Every frame of a file, as a decode from the start gives it.

    What cannot be decoded is passed over at the beginning, and an error later on.
    """
    frames: list[tuple[str, list[Frames]]] = []
    with av.open(str(path)) as file:
        for packet in file.demux(video=0):
            try:
                frames += [planes(frame) for frame in packet.decode()]
            except av.InvalidDataError:
                if frames:
                    raise
    return frames


def _write_silence(file: av.container.OutputContainer, stream: av.AudioStream) -> None:
    rate, samples = 48000, 1152 if stream.codec_context.name == "mp2" else 1024
    frame = av.AudioFrame(format=stream.codec_context.format.name, layout="stereo", samples=samples)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
    for number in range(COUNT * rate // (24 * samples)):
        frame.pts = number * samples
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))
