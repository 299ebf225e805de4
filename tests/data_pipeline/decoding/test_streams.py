"""Files with several video streams, and interlaced video."""

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.batches import BatchAssembler
from data_pipeline.clips import Window
from data_pipeline.config import DataConfig
from data_pipeline.decoding.media import BEST, open_video
from data_pipeline.decoding.window import WindowRequest, read_window
from data_pipeline.errors import UnusableVideoError
from data_pipeline.plan import CENTRE
from tests.helpers.data_videos import Frames
from tests.helpers.video_kinds import X264, write_two_streams


@pytest.fixture(scope="module")
def two_streams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_streams(tmp_path_factory.mktemp("streams") / "a.mp4")


@pytest.mark.parametrize(("number", "size"), [(BEST, (640, 360)), (0, (160, 90)), (1, (640, 360))])
def test_the_stream_that_is_asked_for(
    number: int, size: tuple[int, int], two_streams: Path
) -> None:
    container, stream = open_video(str(two_streams), number)
    with container:
        frame = next(container.decode(stream))
        assert (frame.width, frame.height) == size


def test_a_stream_that_is_not_there_is_refused(two_streams: Path) -> None:
    with pytest.raises(UnusableVideoError, match="has 2 video streams, and none of number 2"):
        open_video(str(two_streams), 2)


def interlaced_frames(count: int, height: int, width: int) -> Frames:
    """An edge that moves 8 pixels between the two half-pictures of a frame: grey [T, H, W]."""
    frames = np.full((count, height, width), 40, np.uint8)
    for t in range(count):
        for field in range(2):
            frames[t, field::2, : 16 + 8 * (2 * t + field) % (width - 24)] = 200
    return frames


def write_edge(path: Path, parameters: str) -> Frames:
    frames = interlaced_frames(6, 64, 96)
    with av.open(str(path), "w") as file:
        options = {"x264-params": X264 + parameters, "qp": "1"}
        stream = file.add_stream("libx264", rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.stack([picture] * 3, -1), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return frames


def request(path: Path, deinterlace: bool) -> WindowRequest:
    return WindowRequest(
        str(path), (0.0, 1.0), 0.0, 6, (CENTRE,), 6, 64, 96, deinterlace=deinterlace
    )


def test_interlaced_video_is_told_and_rebuilt(tmp_path: Path) -> None:
    frames = write_edge(tmp_path / "a.mp4", "tff=1")
    combed = read_window(request(tmp_path / "a.mp4", False))
    assert combed.is_interlaced
    whole = read_window(request(tmp_path / "a.mp4", True)).frames[0].astype(float).mean(axis=1)
    # The even lines, and the odd ones half-way between two of them.
    top = frames[:, ::2].astype(float)
    below = np.concatenate([top[:, 1:], top[:, -1:]], axis=1)
    expected = np.stack([top, (top + below) / 2], axis=2).reshape(frames.shape)
    assert np.abs(whole - expected).mean() < 4
    comb = [
        np.abs(np.diff(video, axis=1)).mean()
        for video in (combed.frames[0].astype(float).mean(axis=1), whole)
    ]
    assert comb[0] > 10
    assert comb[1] < 1


@pytest.mark.parametrize("deinterlace", [False, True])
def test_interlaced_video_is_warned_of_once(
    deinterlace: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assembler = BatchAssembler(DataConfig(annotations="a.json", deinterlace=deinterlace))
    for number, is_interlaced in enumerate((False, True, True)):
        frames = np.zeros((1, 1, 3, 8, 8), np.uint8)
        with caplog.at_level(logging.WARNING):
            assembler.add(Window((number,), frames, f"{number}.mp4", 1, is_interlaced, (), ()))
    told = [message for message in caplog.messages if "is interlaced" in message]
    assert [message.split()[0] for message in told] == ([] if deinterlace else ["1.mp4"])


def test_progressive_video_is_not_interlaced(tmp_path: Path) -> None:
    write_edge(tmp_path / "a.mp4", "bframes=0")
    assert not read_window(request(tmp_path / "a.mp4", False)).is_interlaced
