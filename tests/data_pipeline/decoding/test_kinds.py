"""Chosen frames are those of a sequential decode, bit for bit, in files of every kind."""

from pathlib import Path
from random import Random

import av
import numpy as np
import pytest

from data_pipeline.decoding.video_file import VideoFile
from tests.helpers.data_videos import Frames
from tests.helpers.video_kinds import (
    UNEVEN,
    X264,
    X265,
    Kind,
    hide_frames,
    leave_out_frames,
    make,
    planes,
    remux,
    sequential_planes,
    spoil_the_beginning,
)

OPEN = {"x264-params": X264 + "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"}
REFRESH = {"x264-params": X264 + "intra-refresh=1:keyint=12"}
ALT_REF = {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"}
QUICK = {"deadline": "realtime", "cpu-used": "8"}
AV1 = {"preset": "12", "svtav1-params": "lp=1"}
B3, B2 = {"x264-params": X264 + "bframes=3"}, {"bf": "2"}

KINDS = [
    Kind("b_frames.mp4", "libx264", B3),
    Kind("open_groups.mp4", "libx264", OPEN),
    Kind("open_groups.ts", "libx264", OPEN),
    Kind("open_groups.mkv", "libx264", OPEN),
    Kind("one_key_frame.mp4", "libx264", B3, gop=250),
    Kind("intra.mp4", "libx264", gop=1),
    # Its key frames are none: a decoder needs some more to have a whole picture.
    Kind("intra_refresh.mp4", "libx264", REFRESH, direct=False),
    Kind("intra_refresh.ts", "libx264", REFRESH, direct=False),
    Kind("interlaced.mp4", "libx264", {"x264-params": X264 + "tff=1:bframes=2"}),
    Kind("uneven.mp4", "libx264", B3, stamps=UNEVEN),
    Kind("uneven.mkv", "libx264", B3, stamps=UNEVEN),
    Kind("late.ts", "libx264", B3, stamps=tuple(range(500, 548))),
    Kind("late.mkv", "libx264", B3, stamps=tuple(range(500, 548))),
    Kind("sound_first.mp4", "libx264", B3, sound="aac"),
    Kind("sound_first.ts", "libx264", B3, sound="mp2"),
    Kind("rotated.mp4", "libx264", B3, rotation=90),
    Kind("full_range.mp4", "libx264", B3, pixel_format="yuvj420p"),
    Kind("fragmented.mp4", "libx264", B3, container_options={"movflags": "frag_keyframe"}),
    Kind("no_cues.mkv", "libx264", B3, container_options={"live": "1"}),
    Kind("h264.flv", "libx264", B3),
    # AVI has no stamps of presentation.
    Kind("h264.avi", "libx264", B3, direct=False),
    Kind("no_container.h264", "libx264", B3, direct=False),
    Kind("hevc.mp4", "libx265", {"x265-params": X265 + "open-gop=0"}),
    Kind("hevc_open.mp4", "libx265", {"x265-params": X265 + "open-gop=1"}),
    Kind("hevc_open.ts", "libx265", {"x265-params": X265 + "open-gop=1"}),
    Kind("hevc_10.mkv", "libx265", {"x265-params": X265}, "yuv420p10le"),
    Kind("no_container.hevc", "libx265", {"x265-params": X265}, direct=False),
    Kind("ffv1_10.mkv", "ffv1", pixel_format="yuv420p10le"),
    Kind("prores.mov", "prores_ks", pixel_format="yuv422p10le"),
    Kind("mpeg1.mpg", "mpeg1video", B2, rate=25, direct=False),
    Kind("mpeg2.ts", "mpeg2video", B2, rate=25),
    Kind("mpeg2.vob", "mpeg2video", B2, rate=25, container="vob", direct=False),
    Kind("mpeg2_interlaced.ts", "mpeg2video", B2 | {"flags": "+ildct+ilme"}, rate=25),
    Kind("mpeg4.avi", "mpeg4", size=(96, 128)),
    Kind("mpeg4.mp4", "mpeg4", B2, size=(96, 128)),
    Kind("mpeg4_b_frames.avi", "mpeg4", B2, direct=False),
    Kind("msmpeg4.avi", "msmpeg4"),
    Kind("h263.3gp", "h263", size=(144, 176)),
    Kind("flv1.flv", "flv"),
    Kind("wmv2.wmv", "wmv2"),
    Kind("wmv2.asf", "wmv2", container="asf"),
    Kind("vp8.webm", "libvpx", QUICK),
    Kind("vp8_alt_ref.webm", "libvpx", ALT_REF),
    Kind("vp9.webm", "libvpx-vp9", QUICK),
    Kind("vp9_alt_ref.webm", "libvpx-vp9", ALT_REF),
    Kind("vp9_alt_ref.mp4", "libvpx-vp9", ALT_REF),
    Kind("av1.mp4", "libsvtav1", AV1, size=(64, 64)),
    Kind("av1.mkv", "libsvtav1", AV1, size=(64, 64)),
    Kind("mjpeg.avi", "mjpeg", pixel_format="yuvj420p"),
    Kind("mjpeg.mov", "mjpeg", pixel_format="yuvj420p"),
]

Planes = tuple[str, list[Frames]]


def check(path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random increasing indices, far apart and in a row."""
    expected = sequential_planes(path)
    count = len(expected)
    if direct:
        monkeypatch.delattr(VideoFile, "_read_from_start")
    random = Random(path.name)
    for _ in range(8):
        check_read(path, sorted(random.sample(range(count), random.randint(1, 6))), expected)
    for first in random.sample(range(count - 5), 4):
        check_read(path, list(range(first, first + 5)), expected)


def check_read(path: Path, indices: list[int], expected: list[Planes]) -> None:
    given: dict[int, Planes] = {}

    def keep(index: int, frame: av.VideoFrame) -> None:
        given[index] = planes(frame)

    with VideoFile(str(path)) as video:
        assert video.num_frames == len(expected)
        video.read(indices, keep)
        assert video.decoded >= len(indices)
    assert sorted(given) == indices
    for index, (name, pictures) in given.items():
        assert name == expected[index][0]
        for picture, other in zip(pictures, expected[index][1], strict=True):
            np.testing.assert_array_equal(picture, other)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_frames_equal_those_of_a_sequential_decode(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(kind, tmp_path)
    assert len(sequential_planes(path)) == len(kind.stamps)
    check(path, kind.direct, monkeypatch)


HEVC_OPEN = Kind("whole.mp4", "libx265", {"x265-params": X265 + "open-gop=1"})


@pytest.mark.parametrize(
    ("whole", "first", "names"),
    [
        (Kind("whole.mp4", "libx264", B3), 14, ("cut.mp4", "cut.mkv", "cut.ts")),
        (Kind("whole.mp4", "libx264", B3), 12, ("cut.mp4", "cut.mkv", "cut.ts")),
        (Kind("whole.mp4", "libx264", REFRESH), 12, ("cut.mp4", "cut.mkv")),
        (HEVC_OPEN, 12, ("cut.mp4", "cut.mkv", "cut.ts")),
    ],
    ids=["before a key frame", "at a key frame", "at a refresh", "in an open group"],
)
def test_a_recording_that_was_cut_by_copying(
    whole: Kind,
    first: int,
    names: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frames that refer to what was cut off are not decoded, or an edit list drops them."""
    source = make(whole, tmp_path)
    for name in names:
        check(remux(source, tmp_path / name, first=first), False, monkeypatch)


def test_a_beginning_that_cannot_be_decoded_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(Kind("whole.mp4", "libx264", B3), tmp_path)
    for name in ("spoilt.mp4", "spoilt.mkv"):
        path = remux(whole, tmp_path / name, change=spoil_the_beginning)
        assert 0 < len(sequential_planes(path)) < 48
        check(path, False, monkeypatch)


def test_recordings_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their stamps interleave, so that the order of presentation is not that of the stamps."""
    whole = make(Kind("whole.mp4", "libx264", B3), tmp_path)
    parts = [remux(whole, tmp_path / f"{shift}.ts", shift=shift) for shift in (1100, 1200)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    check(path, False, monkeypatch)
    expected = sequential_planes(path)
    assert len(expected) == 96
    for last in range(1, 96):
        check_read(path, [0, last], expected)


def test_a_start_after_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(Kind("whole.mp4", "libx264", B3), tmp_path)
    for name in ("late.mp4", "late.mkv", "late.ts"):
        with monkeypatch.context() as patch:
            check(remux(whole, tmp_path / name, shift=90000), True, patch)


@pytest.mark.parametrize(
    ("source", "name", "direct"),
    [
        (Kind("vp8.webm", "libvpx", QUICK), "hidden.webm", True),
        (Kind("vp8.webm", "libvpx", QUICK), "hidden.avi", True),
        (Kind("mpeg4.avi", "mpeg4"), "empty.avi", False),
        (Kind("mpeg4.avi", "mpeg4"), "empty.mp4", False),
        (Kind("mpeg4.avi", "mpeg4"), "empty.mkv", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_packets_without_a_frame(
    source: Kind, name: str, direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = hide_frames if source.codec == "libvpx" else leave_out_frames
    path = remux(make(source, tmp_path), tmp_path / name, change=change)
    assert len(sequential_planes(path)) == len(source.stamps) - 2
    check(path, direct, monkeypatch)
