"""Reading a video: which frames are handed out, what it costs, and what is refused."""

import os
import struct
import wave
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_pipeline.decoding import video_file
from data_pipeline.decoding.damage import MismatchError
from data_pipeline.decoding.video_file import UnusableVideoError, VideoFile
from tests.helpers.data_videos import Frames, moving_frames, sequential_frames, write_video
from tests.helpers.video_kinds import Kind, make

WINDOWS = [(0, 1, 5), (0, 3, 9), (7, 1, 9), (11, 2, 6), (12, 1, 1), (13, 3, 7), (31, 1, 9)]
"""First frame, step and count, for videos of 40 frames."""


def read(video: VideoFile, indices: list[int]) -> list[Frames]:
    """Uint8 [H, W, C] each."""
    given: dict[int, Frames] = {}

    def keep(index: int, frame: av.VideoFrame) -> None:
        given[index] = frame.to_ndarray(format="rgb24")

    video.read(indices, keep)
    assert sorted(given) == indices
    return [given[index] for index in indices]


def check_windows(path: Path, windows: list[tuple[int, int, int]]) -> None:
    expected = sequential_frames(path)
    for first, step, count in windows:
        indices = [first + step * k for k in range(count)]
        with VideoFile(str(path)) as video:
            assert video.num_frames == len(expected)
            for index, frame in zip(indices, read(video, indices), strict=True):
                np.testing.assert_array_equal(frame, expected[index])


@pytest.mark.parametrize("gop", [1, 5, 12, 250])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_frames_equal_those_of_a_sequential_decode(tmp_path: Path, gop: int, b_frames: int) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(40), gop=gop, b_frames=b_frames)
    check_windows(path, WINDOWS)


def test_real_video() -> None:
    path = Path(os.environ.get("DRIVING_DATA", "")) / "data" / "solidWhiteRight.mp4"
    if not path.is_file():
        pytest.skip(f"no real video: {path} does not exist (set DRIVING_DATA)")
    check_windows(path, [(0, 1, 3), (100, 3, 9), (212, 1, 9)])


def test_several_reads_of_one_open_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(40), gop=5)
    expected = sequential_frames(path)
    with VideoFile(str(path)) as video:
        for indices in ([30, 31], [2, 9], [0], [38, 39], [0, 39]):
            for index, frame in zip(indices, read(video, indices), strict=True):
                np.testing.assert_array_equal(frame, expected[index])


def test_decoding_begins_at_the_key_frame_before_the_window(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(40), gop=5, b_frames=0)
    for indices, least in (([36, 37], 3), ([0], 1), ([4, 5], 6)):
        with VideoFile(str(path)) as video:
            read(video, indices)
            # Two for the check of the beginning, and one or two that are decoded ahead.
            assert least + 2 <= video.decoded <= least + 4


def test_frames_that_no_other_needs_are_left_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(40), gop=250, b_frames=3)
    with VideoFile(str(path)) as video:
        read(video, [39])
        assert video.decoded < 36


def test_a_file_object_is_read_like_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[FileIO] = []

    def open_media(location: str) -> FileIO:
        files.append(FileIO(tmp_path / Path(location).name))
        return files[-1]

    monkeypatch.setattr(video_file, "open_media", open_media)
    frames = moving_frames(40)
    stamps = [k + k // 7 for k in range(40)]
    for name, path in (
        ("a.mp4", write_video(tmp_path / "a.mp4", frames, gop=7)),
        ("b.mp4", write_video(tmp_path / "b.mp4", frames, gop=7, stamps=stamps)),
        ("c.h264", write_video(tmp_path / "c.h264", frames, gop=7)),
    ):
        expected = sequential_frames(path)
        with VideoFile(f"s3://bucket/{name}") as video:
            for index, frame in zip([20, 22], read(video, [20, 22]), strict=True):
                np.testing.assert_array_equal(frame, expected[index])
    (tmp_path / "d.mp4").write_bytes(b"no video")
    for name in ("d.mp4", "absent.mp4"):
        with pytest.raises(UnusableVideoError):
            VideoFile(name)
    assert len(files) == 4
    assert all(file.closed for file in files)


def test_where_the_timeline_proves_wrong_half_way_all_frames_are_handed_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(40), gop=5)
    expected = sequential_frames(path)
    whole = VideoFile._packets_from

    def cut_short(self: VideoFile, *place: Any) -> Iterator[av.Packet]:
        for number, packet in enumerate(whole(self, *place)):
            if number == 15:
                raise MismatchError("the file has changed")
            yield packet

    monkeypatch.setattr(VideoFile, "_packets_from", cut_short)
    given: list[int] = []

    def check(index: int, frame: av.VideoFrame) -> None:
        given.append(index)
        np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), expected[index])

    with VideoFile(str(path)) as video:
        video.read([12, 20, 30], check)
    assert given == [12, 20, 12, 20, 30]


def test_unusable_videos_say_why(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no video at all" * 100)
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    for path, reason in (
        (tmp_path / "absent.mp4", "^missing$"),
        (garbage / "a.mp4", "^missing$"),
        (garbage, "^cannot be opened: "),
        (empty, "^cannot be opened: "),
        (tmp_path, "^is no file but a folder, a pipe or a device$"),
    ):
        with pytest.raises(UnusableVideoError, match=reason):
            VideoFile(str(path))


def test_a_sound_file_has_no_video_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    with pytest.raises(UnusableVideoError, match="has no video stream"):
        VideoFile(str(path))


@pytest.mark.parametrize(
    "size", [(65535, 65535), (2**14, 2**12 + 1), (0, 48), (64, 0), (-64, 48)], ids=str
)
def test_impossible_sizes_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / "a.avi", moving_frames(3), codec="rawvideo")
    data, true_size = path.read_bytes(), struct.pack("<ii", 64, 48)
    assert true_size in data
    path.write_bytes(data.replace(true_size, struct.pack("<ii", *size)))
    with pytest.raises(UnusableVideoError, match="frames of no size, or of more than 67108864"):
        VideoFile(str(path))


def test_a_size_that_only_the_frames_state_is_refused_by_the_decoder(tmp_path: Path) -> None:
    path = make(Kind("a.avi", "mjpeg", pixel_format="yuvj420p"), tmp_path)
    data, true_size = path.read_bytes(), struct.pack(">HH", 48, 64)
    path.write_bytes(data.replace(true_size, struct.pack(">HH", 65500, 65500)))
    with VideoFile(str(path)) as video, pytest.raises(UnusableVideoError, match="be decoded: "):
        read(video, [0])


def test_a_video_without_a_frame_rate_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(20), codec="mpeg4")
    data = bytearray(path.read_bytes())
    # The box of durations: version, number of runs, and each run's frames and their duration.
    place = data.index(b"stts") + 4
    assert struct.unpack_from(">III", data, place) == (0, 1, 20)
    struct.pack_into(">I", data, place + 12, 0)
    path.write_bytes(data)
    with pytest.raises(UnusableVideoError, match="has no frame rate"):
        VideoFile(str(path))


def test_a_codec_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", moving_frames(5))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    with pytest.raises(UnusableVideoError, match="has no codec that is known"):
        VideoFile(str(path))


def test_a_truncated_file_is_unusable_where_it_is_cut(tmp_path: Path) -> None:
    path = write_video(tmp_path / "whole.mp4", moving_frames(40))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
    with VideoFile(str(cut)) as video, pytest.raises(UnusableVideoError):
        read(video, [30, 31, 32, 39])
