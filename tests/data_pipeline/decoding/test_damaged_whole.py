"""Whole videos that are damaged: what decodes is bit for bit that of the sound file, and what is
lost is listed."""

from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.decoding.damage import LostFrames
from data_pipeline.decoding.sandbox import WindowReader
from data_pipeline.decoding.video_file import VideoFile
from data_pipeline.decoding.whole_video import (
    WholeRequest,
    kept_frames,
    plan_whole,
    stretches,
    whole_frames,
)
from data_pipeline.errors import UnusableVideoError
from tests.data_pipeline.decoding.test_kinds import B3, HEVC_OPEN, KINDS, OPEN
from tests.helpers.data_videos import moving_frames, write_video
from tests.helpers.video_kinds import (
    UNEVEN,
    X265,
    Kind,
    make,
    planes,
    remux,
    sequential_planes,
    spoil,
)


def walk(path: Path, frames: range | None = None) -> tuple[dict[int, object], list[LostFrames]]:
    kept: dict[int, object] = {}
    lost = []
    with VideoFile(str(path)) as video:
        for item in video.walk(frames or range(video.frames_to_walk)):
            if isinstance(item, LostFrames):
                lost.append(item)
            else:
                assert item[0] not in kept
                kept[item[0]] = planes(item[1])
    assert [*kept] == sorted(kept)
    return kept, lost


def check(source: Path, path: Path, *expected: tuple[int, int]) -> list[LostFrames]:
    """All but the ranges [first, end) is as in the sound file."""
    sound = sequential_planes(source)
    kept, lost = walk(path)
    assert [(one.first, one.end) for one in lost] == [*expected]
    left_out = {index for first, end in expected for index in range(first, end)}
    assert {*kept} == {*range(len(sound))} - left_out
    for index, found in kept.items():
        np.testing.assert_equal(found, sound[index], err_msg=str(index))
    return lost


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_of_a_sound_video_nothing_is_lost(kind: Kind, tmp_path: Path) -> None:
    path = make(kind, tmp_path)
    check(path, path)


MPEG4 = Kind("a.mp4", "mpeg4", size=(96, 128))


@pytest.mark.parametrize(
    ("kind", "name", "packet", "end"),
    [
        (Kind("a.mp4", "libx264", B3), "b.mp4", 20, 24),
        (Kind("a.mp4", "libx264", B3), "b.mkv", 17, 24),
        (Kind("a.mp4", "libx264", B3), "b.ts", 17, 24),
        (Kind("a.mp4", "libx264", B3, stamps=UNEVEN), "b.mkv", 17, 24),
        (Kind("a.mp4", "libx264", OPEN), "b.mp4", 15, 20),
        (Kind("a.mp4", "libx264", gop=1), "b.mp4", 20, 21),
        (Kind("a.mp4", "libx265", {"x265-params": X265 + "open-gop=0"}), "b.mp4", 20, 24),
        (HEVC_OPEN, "b.mp4", 20, 24),
        (Kind("a.ts", "mpeg2video", {"bf": "2"}, rate=25), "b.ts", 17, 24),
        (MPEG4, "b.mp4", 20, 24),
        (Kind("a.3gp", "h263", size=(144, 176)), "b.3gp", 20, 24),
        # Key frames: the first, one in the middle, the last.
        (MPEG4, "b.mp4", 0, 12),
        (Kind("a.mp4", "libx264", B3), "b.mp4", 12, 24),
        (MPEG4, "b.mp4", 36, 48),
    ],
)
def test_damage_costs_what_is_decoded_after_it_up_to_the_next_key_frame(
    kind: Kind, name: str, packet: int, end: int, tmp_path: Path
) -> None:
    """Of B frames also what is shown before it; the frames of earlier packets are kept."""
    source = make(kind, tmp_path)
    path = remux(source, tmp_path / name, change=spoil(packet))
    with av.open(str(source)) as file:
        stamps = [p.pts for p in file.demux(video=0) if p.size > 0]
    shown = sorted(stamps)
    places = [stamps.index(stamp) for stamp in shown]
    lost = check(source, path, *ranges([k for k in range(end) if places[k] >= packet]))
    assert all(one.reason.startswith("damaged") for one in lost)


def ranges(indices: list[int]) -> list[tuple[int, int]]:
    """[first, end) of those that follow each other."""
    firsts = [k for k in indices if k - 1 not in indices]
    ends = [k + 1 for k in indices if k + 1 not in indices]
    return [*zip(firsts, ends, strict=True)]


def test_several_bad_places(tmp_path: Path) -> None:
    """Also where a frame that is not shown yet, of a packet before, is that of another group."""
    source = make(MPEG4, tmp_path)
    path = remux(source, tmp_path / "b.mp4", change=spoil(5, 20, 24, 40))
    check(source, path, (5, 12), (20, 36), (40, 48))
    _, lost = walk(path, range(8, 22))
    assert [(one.first, one.end) for one in lost] == [(8, 12), (20, 22)]
    kept, lost = walk(path, range(12, 20))
    assert ([*kept], lost) == ([*range(12, 20)], [])


def test_a_file_that_ends_early_has_lost_its_tail(tmp_path: Path) -> None:
    for stamps in (None, [k + k // 7 for k in range(40)]):
        source = write_video(tmp_path / "a.mp4", moving_frames(40), b_frames=0, stamps=stamps)
        path, content = tmp_path / "b.mp4", source.read_bytes()
        path.write_bytes(content[: len(content) * 3 // 4])
        _, [lost] = walk(path)
        assert lost.end == 40
        assert 10 < lost.first < 36
        check(source, path, (lost.first, 40))


def test_without_a_timeline_what_follows_damage_has_no_number(tmp_path: Path) -> None:
    source = make(Kind("a.mp4", "libx264", B3), tmp_path)
    path = remux(source, tmp_path / "b.h264", change=spoil(30))
    with VideoFile(str(path)) as video:
        assert video.frames_to_walk == 48
    _, [lost] = walk(path)
    assert 10 <= lost.first <= 30
    assert lost.end == 48
    assert "cannot be numbered" in lost.reason
    check(source, path, (lost.first, 48))


def test_a_video_of_which_nothing_decodes_is_unusable(tmp_path: Path) -> None:
    source = make(MPEG4, tmp_path)
    path = remux(source, tmp_path / "b.mp4", change=spoil(0, 12, 24, 36))
    request = WholeRequest(str(path), 8)
    with pytest.raises(UnusableVideoError, match="cannot be decoded: damaged"):
        [*kept_frames(request, plan_whole(request))]
    with WindowReader() as reader:
        _, items = reader.read_kept(request, 30.0)
        with pytest.raises(UnusableVideoError, match="cannot be decoded: damaged"):
            next(items)


def test_stretches_are_those_of_the_sound_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(MPEG4, tmp_path)
    path = remux(source, tmp_path / "b.mp4", change=spoil(0, 20, 40))
    request = WholeRequest(str(source), 8)
    sound = np.concatenate([*whole_frames(request, plan_whole(request))])
    request = WholeRequest(str(path), 8)
    with WindowReader() as reader:
        video, items = reader.read_kept(request, 30.0)
        lost: list[LostFrames] = []
        found = [
            (stretch.first_frame, np.concatenate([*stretch.pieces]))
            for stretch in stretches(video, items, lost)
        ]
        assert [(first, len(frames)) for first, frames in found] == [(12, 8), (24, 16)]
        for first, frames in found:
            np.testing.assert_array_equal(frames, sound[first : first + len(frames)])
        assert [(one.first, one.end) for one in lost] == [(0, 12), (20, 24), (40, 48)]
        assert str(lost[1]).startswith("frames 20 to 23 are lost (damaged")
        # Who does not ask for stretches is told of the damage.
        _, pieces = reader.read_whole(request, 30.0)
        with pytest.raises(UnusableVideoError, match="frames 0 to 11 are lost"):
            next(pieces)
