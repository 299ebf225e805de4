"""Chosen frames are those of a sequential decode, bit for bit, whatever the file looks like."""

import os
import wave
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.decode import UnusableVideoError, VideoFile, choose_window
from tests.data_videos import moving_frames, sequential_frames, write_video

DRIVING = Path(os.environ.get("DRIVING_DATA", Path(__file__).parents[2] / "shared" / "driving"))

WINDOWS = [(0, 1, 5), (0, 3, 9), (7, 1, 9), (11, 2, 6), (12, 1, 1), (13, 3, 7), (31, 1, 9)]
"""First frame, step and count, for videos of 40 frames."""


def check_windows(path: Path, windows: list[tuple[int, int, int]]) -> None:
    expected = sequential_frames(path)
    for first, step, count in windows:
        indices = [first + step * k for k in range(count)]
        with VideoFile(str(path)) as video:
            assert video.num_frames == len(expected)
            frames = video.frames(indices)
        for index, frame in zip(indices, frames, strict=True):
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), expected[index])


@pytest.mark.parametrize("gop", [1, 5, 12, 250])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_frames_equal_those_of_a_sequential_decode(tmp_path: Path, gop: int, b_frames: int) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(40), gop=gop, b_frames=b_frames)
    check_windows(path, WINDOWS)


def test_open_groups_of_pictures(tmp_path: Path) -> None:
    params = "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"
    path = write_video(tmp_path / "a.mp4", moving_frames(40), x264_params=params)
    check_windows(path, WINDOWS)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_containers_whose_header_does_not_list_the_frames(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = write_video(tmp_path / name, moving_frames(40), codec=codec)
    check_windows(path, WINDOWS)


def test_raw_stream_without_time_stamps(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.h264", moving_frames(40))
    check_windows(path, WINDOWS)


def test_irregular_time_stamps(tmp_path: Path) -> None:
    stamps = [k + (k > 9) * 4 + (k // 7) for k in range(40)]
    for name in ("a.mp4", "a.mkv"):
        path = write_video(tmp_path / name, moving_frames(40), stamps=stamps)
        check_windows(path, WINDOWS)


def test_real_video() -> None:
    path = DRIVING / "data" / "solidWhiteRight.mp4"
    if not path.is_file():
        pytest.skip(f"no real video: {path} does not exist (set DRIVING_DATA)")
    check_windows(path, [(0, 1, 3), (100, 3, 9), (212, 1, 9)])


def test_the_key_frame_before_the_window_is_where_decoding_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(40), gop=5)
    monkeypatch.delattr(VideoFile, "_from_start")
    check_windows(path, WINDOWS)


def test_unusable_videos_say_why(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no video at all" * 100)
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    for path, reason in (
        (tmp_path / "absent.mp4", "^missing$"),
        (garbage, "^cannot be opened: "),
        (empty, "^cannot be opened: "),
        (tmp_path, "^cannot be opened: "),
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


def test_a_truncated_file_is_unusable_where_it_is_cut(tmp_path: Path) -> None:
    path = write_video(tmp_path / "whole.mp4", moving_frames(40))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
    with VideoFile(str(cut)) as video, pytest.raises(UnusableVideoError):
        video.frames([30, 31, 32, 39])


def test_the_window_lies_inside_of_the_span() -> None:
    for start in (0.0, 0.3, 0.999999):
        first, step = choose_window((10, 40), start, 3, 9)
        assert first >= 10
        assert step == 3
        assert first + 8 * step < 40
    assert choose_window((10, 40), 0.0, 3, 9)[0] == 10
    assert choose_window((10, 40), 0.999999, 3, 9)[0] + 24 == 39


def test_a_step_that_does_not_fit_becomes_the_largest_that_does() -> None:
    assert choose_window((0, 20), 0.5, 3, 9)[1] == 2
    assert choose_window((0, 9), 0.9, 3, 9) == (0, 1)
    with pytest.raises(UnusableVideoError, match="has 8 frames, a clip needs 9 frames at step 1"):
        choose_window((0, 8), 0.0, 1, 9)
