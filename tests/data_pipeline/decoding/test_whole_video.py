"""Whole videos through a process of their own, and what it does for one that breaks it."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.decoding import video_file, whole_video
from data_pipeline.decoding.sandbox import CrashedError, TimedOutError, WindowReader
from data_pipeline.decoding.whole_video import WholeRequest, plan_whole, read_facts, whole_frames
from data_pipeline.errors import UnusableVideoError
from tests.helpers.data_videos import moving_frames, write_video

SECONDS = 30.0

BROKEN = """
import os, signal, time
from data_pipeline.decoding import sandbox_process

def break_down(request, video):
    pieces = kept_frames(request, video)
    yield next(pieces)
    fault = os.path.basename(request.location)
    if fault.startswith("hang"): time.sleep(1000)
    if fault.startswith("crash"): os.kill(os.getpid(), signal.SIGSEGV)
    if fault.startswith("bug"): {}["no such key"]
    yield from pieces

kept_frames, sandbox_process.kept_frames = sandbox_process.kept_frames, break_down
sandbox_process.main()
"""
"""Breaks down after the first piece of a video of certain names."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("videos")
    video = write_video(made / "sound.mp4", moving_frames(50, 50, 68), gop=12)
    for fault in ("hang", "crash", "bug"):
        (made / f"{fault}.mp4").write_bytes(video.read_bytes())
    return made


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[WindowReader]:
    # The child has its own copy of the module, with pieces of the usual size.
    small = "from data_pipeline.decoding import whole_video"
    small += f"; whole_video.PIECE_BYTES = {7 * 3 * 48 * 64}"
    monkeypatch.setattr(whole_video, "PIECE_BYTES", 7 * 3 * 48 * 64)
    with WindowReader((sys.executable, "-c", f"{small}\n{BROKEN}")) as made:
        yield made


def check_sound(reader: WindowReader, request: WholeRequest) -> None:
    video, pieces = reader.read_whole(request, SECONDS)
    assert video == plan_whole(request)
    found = [*pieces]
    assert max(len(piece) for piece in found) == 7
    expected = np.concatenate([*whole_frames(request, video)])
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_frames_are_those_of_a_read_in_this_process(reader: WindowReader, folder: Path) -> None:
    request = WholeRequest(str(folder / "sound.mp4"), 8)
    check_sound(reader, request)
    child = reader._child
    check_sound(reader, replace(request, span=(0.25, 0.9)))
    check_sound(reader, replace(request, height=16 * 3, width=16 * 4))
    assert reader._child is child


def test_frames_of_a_span_are_those_of_the_whole(folder: Path) -> None:
    request = WholeRequest(str(folder / "sound.mp4"), 8)
    every = np.concatenate([*whole_frames(request, plan_whole(request))])
    part = replace(request, span=(0.5, 0.8), limit=9)
    video = plan_whole(part)
    assert (video.first_frame, video.frames) == (25, 9)
    np.testing.assert_array_equal(np.concatenate([*whole_frames(part, video)]), every[25:34])


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("hang", TimedOutError, "no frame after 3 s; its decoder was stopped"),
        ("crash", CrashedError, "crashed the decoder"),
        ("bug", RuntimeError, "(?s)bug.mp4 failed:.*KeyError"),
    ],
)
def test_what_breaks_half_way_is_told_after_what_was_sound(
    fault: str, error: type[Exception], message: str, reader: WindowReader, folder: Path
) -> None:
    request = WholeRequest(str(folder / f"{fault}.mp4"), 8)
    _, pieces = reader.read_whole(request, 3.0)
    assert len(next(pieces)) == 7
    with pytest.raises(error, match=message):
        next(pieces)
    check_sound(reader, replace(request, location=str(folder / "sound.mp4")))


def test_a_read_that_is_given_up_leaves_nothing_in_the_pipe(
    reader: WindowReader, folder: Path
) -> None:
    request = WholeRequest(str(folder / "sound.mp4"), 8)
    _, pieces = reader.read_whole(request, SECONDS)
    next(pieces)
    pieces.close()
    check_sound(reader, request)


def test_an_answer_that_is_not_read_on_hurts_no_other(reader: WindowReader, folder: Path) -> None:
    request = WholeRequest(str(folder / "sound.mp4"), 8)
    _, left = reader.read_whole(request, SECONDS)
    first = next(left)
    video, pieces = reader.read_whole(request, SECONDS)
    found = [next(pieces)]
    left.close()
    found += [*pieces]
    np.testing.assert_array_equal(found[0], first)
    assert sum(len(piece) for piece in found) == video.frames == 50


def test_videos_that_cannot_be_read(reader: WindowReader, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "none.mp4").write_bytes(b"no video")
    for location, message in (
        (tmp_path / "absent.mp4", "missing"),
        (tmp_path / "none.mp4", "cannot be opened"),
    ):
        with pytest.raises(UnusableVideoError, match=message):
            reader.read_whole(WholeRequest(str(location), 8), SECONDS)
    with pytest.raises(UnusableVideoError, match="at least one of 64x64 is needed"):
        reader.read_whole(WholeRequest(str(folder / "sound.mp4"), 64), SECONDS)


def test_the_facts_of_a_sound_file_do_not_take_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header tells how many frames there are; on S3 the rest would be fetched for nothing."""
    write_video(tmp_path / "a.mp4", moving_frames(40))
    monkeypatch.setattr(video_file, "scan_timeline", lambda *_: pytest.fail("read to its end"))
    assert read_facts(str(tmp_path / "a.mp4")).frames == 40
