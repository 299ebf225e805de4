"""Damaged files give clips or a reason: no hang, no crash, no harm to the files that follow."""

import io
import re
import struct
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest

from data_pipeline.decoding.sandbox import TimedOutError, WindowReader
from data_pipeline.decoding.window import WindowRequest
from data_pipeline.errors import UnusableVideoError
from data_pipeline.plan import CENTRE
from tests.helpers.data_videos import moving_frames
from tests.helpers.video_kinds import X264, Kind, make

SECONDS = 20.0

B3 = {"x264-params": X264 + "bframes=3"}
SOUND_FILES = [
    Kind("h264.mp4", "libx264", B3, size=(64, 96), sound="aac"),
    Kind("fragmented.mp4", "libx264", B3, container_options={"movflags": "frag_keyframe"}),
    Kind("h264.mkv", "libx264", B3),
    Kind("h264.ts", "libx264", B3, size=(64, 96)),
    Kind("h264.flv", "libx264", B3),
    Kind("hevc.mp4", "libx265", {"x265-params": "pools=none:frame-threads=1:log-level=none"}),
    Kind("mpeg4.avi", "mpeg4", size=(64, 96)),
    Kind("mjpeg.mov", "mjpeg", pixel_format="yuvj420p"),
    Kind("mpeg2.mpg", "mpeg2video", {"bf": "2"}, rate=25),
    Kind("vp9.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    Kind("av1.mp4", "libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}, size=(64, 64)),
]

REQUEST = WindowRequest(
    location="",
    span=(0.0, 1.0),
    start=0.6,
    window_frames=20,
    clips=(CENTRE, replace(CENTRE, offset=0.9, step=2, hue=0.03)),
    num_frames=9,
    height=32,
    width=48,
)

Mutation = Callable[[bytes, Random], bytes]


def span(data: bytes, random: Random) -> tuple[int, int]:
    """A stretch of random length, from 1 byte to a third of the file."""
    length = int(random.random() ** 3 * len(data) / 3) + 1
    first = random.randrange(len(data))
    return first, min(first + length, len(data))


def truncate(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data))]


def cut_the_head(data: bytes, random: Random) -> bytes:
    return data[span(data, random)[1] :]


def drop(data: bytes, random: Random) -> bytes:
    first, end = span(data, random)
    return data[:first] + data[end:]


def duplicate(data: bytes, random: Random) -> bytes:
    first, end = span(data, random)
    return data[:end] + data[first:]


def swap(data: bytes, random: Random) -> bytes:
    first, middle, end = sorted(random.sample(range(len(data)), 3))
    return data[:first] + data[middle:end] + data[first:middle] + data[end:]


def zero(data: bytes, random: Random) -> bytes:
    first, end = span(data, random)
    return data[:first] + bytes(end - first) + data[end:]


def scramble(data: bytes, random: Random) -> bytes:
    first, end = span(data, random)
    return data[:first] + random.randbytes(end - first) + data[end:]


def append_garbage(data: bytes, random: Random) -> bytes:
    return data + random.randbytes(random.randrange(1, 20000))


def flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(int(100 ** random.random())):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def flip_in_the_header(data: bytes, random: Random) -> bytes:
    """Where the header is: at either end."""
    size = min(2000, len(data) // 3)
    if random.random() < 0.5:
        return flip(data[:size], random) + data[size:]
    return data[:-size] + flip(data[-size:], random)


def write_extremes(data: bytes, random: Random) -> bytes:
    """Numbers of 16 or 32 bits that no check may have thought of."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        code = random.choice([">I", "<I", ">H", "<H"])
        size = 8 * struct.calcsize(code)
        value = random.choice([0, 1, 2**size - 1, 2 ** (size - 1), 2 ** (size - 1) - 1])
        struct.pack_into(code, changed, random.randrange(min(4000, len(data)) - 4), value)
    return bytes(changed)


def resize_boxes(data: bytes, random: Random) -> bytes:
    """Wrong sizes of mp4 boxes and AVI chunks, and wrong counts inside of them."""
    changed = bytearray(data)
    places = [match.start() for match in re.finditer(rb"[a-z0-9]{4}", data) if match.start() >= 4]
    for place in random.sample(places, min(len(places), random.randint(1, 3))):
        value = random.choice([0, 1, 7, 8, 2**31, 2**32 - 1, random.randrange(2**16)])
        offset = random.choice([-4, -4, 4, 8, 12])
        if place + offset + 4 <= len(data):
            struct.pack_into(random.choice("><") + "I", changed, place + offset, value)
    return bytes(changed)


def mix(data: bytes, random: Random) -> bytes:
    for mutation in random.choices(MUTATIONS[:-1], k=random.randint(2, 4)):
        data = mutation(data, random) or b"\0" * 16
        data += bytes(max(0, 16 - len(data)))
    return data


MUTATIONS: list[Mutation] = [
    truncate,
    cut_the_head,
    drop,
    duplicate,
    swap,
    zero,
    scramble,
    append_garbage,
    flip,
    flip_in_the_header,
    write_extremes,
    resize_boxes,
    mix,
]


def other_files() -> Iterator[tuple[str, bytes]]:
    """What turns up under the name of a video without being one, or promises too much."""
    yield "empty", b""
    yield "one byte", b"\0"
    yield "text", b"404: not found\n" * 300
    yield "a page", b"<!DOCTYPE html><html><body>404</body></html>"
    yield "a playlist", b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    yield "a list of files", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "noise", Random(0).randbytes(100_000)
    yield "zeros", bytes(100_000)
    yield "the head of an mp4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(5000)
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    yield "sound", sound.getvalue()
    for name, codec, pixel_format in (("png", "png", "rgb24"), ("jpg", "mjpeg", "yuvj420p")):
        context = av.CodecContext.create(codec, "w")
        context.width, context.height, context.pix_fmt = 64, 48, pixel_format
        context.time_base = Fraction(1, 24)
        frame = av.VideoFrame.from_ndarray(moving_frames(1)[0], format="rgb24")
        yield name, b"".join(map(bytes, [*context.encode(frame), *context.encode(None)]))


def damaged_files(folder: Path, count: int) -> Iterator[tuple[str, str, bytes]]:
    """`count` files with every mutation of every sound file in turn: a label, a suffix, bytes."""
    sources = [(kind.name, make(kind, folder).read_bytes()) for kind in SOUND_FILES]
    for name, data in list(other_files())[: count // 3]:
        yield name, ".mp4", data
        count -= 1
    for number in range(count):
        name, data = sources[number % len(sources)]
        mutation = MUTATIONS[number % len(MUTATIONS)]
        suffix = Path(name).suffix
        yield f"{mutation.__name__} {name}", suffix, mutation(data, Random(number))


def check_files(folder: Path, count: int) -> tuple[Counter[str], list[float]]:
    """Read `count` damaged files and sound ones between them.

    Returns how often each thing happened, and the reader's memory now and then, in MB.
    """
    outcomes: Counter[str] = Counter()
    memory = []
    with WindowReader() as reader:
        for number, (label, suffix, data) in enumerate(damaged_files(folder, count)):
            path = folder / f"damaged{suffix}"
            path.write_bytes(data)
            outcomes[outcome(reader, path, label)] += 1
            if number % 10 == 0:
                sound = folder / SOUND_FILES[number // 10 % len(SOUND_FILES)].name
                assert outcome(reader, sound, label) == "clips"
                memory.append(memory_of(reader))
    return outcomes, memory


def outcome(reader: WindowReader, path: Path, label: str) -> str:
    """`clips`, or the reason for there being none, without its numbers."""
    request = replace(REQUEST, location=str(path))
    try:
        window = reader.read(request, SECONDS)
    except TimedOutError as error:
        pytest.fail(f"{label}: {error}")
    except UnusableVideoError as error:
        reason = re.sub(r"\d+", "N", str(error))
    else:
        assert window.frames.shape == request.shape
        assert window.frames.dtype == np.uint8
        reason = "clips"
    assert reason, label
    return reason


def memory_of(reader: WindowReader) -> float:
    """What the child holds, in MB."""
    assert reader._child is not None
    status = Path(f"/proc/{reader._child.pid}/status").read_text()
    return float(status.split("VmRSS:")[1].split()[0]) / 1000


def test_damaged_files(tmp_path: Path) -> None:
    outcomes, _ = check_files(tmp_path, 60)
    assert outcomes.total() == 60
    assert outcomes["clips"] >= 10
    assert not any("crashed" in reason for reason in outcomes), outcomes


@pytest.mark.slow
def test_thousands_of_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes, memory = check_files(tmp_path, 2000)
    with capsys.disabled():
        print(f"\nThe reader held {memory[0]:.0f} MB, at most {max(memory):.0f}, {memory[-1]:.0f}")  # noqa: T201
        for reason, times in outcomes.most_common():
            print(f"{times:6d}  {reason}")  # noqa: T201
    assert outcomes.total() == 2000
    # A crash is survived, and still a reason to look into it.
    assert sum(times for reason, times in outcomes.items() if "crashed" in reason) <= 2
    # What damaged files leave behind does not pile up.
    later = memory[len(memory) // 2 :]
    assert max(later) < memory[0] + 200
