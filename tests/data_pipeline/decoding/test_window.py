"""A window is placed by fractions, decoded once, and gives the clips that its plans ask for."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.decoding.window import WindowRequest, place_clips, read_window, span_frames
from data_pipeline.errors import UnusableVideoError
from data_pipeline.plan import CENTRE, ClipPlan
from tests.helpers.data_videos import Frames, moving_frames, sequential_frames, write_video

REQUEST = WindowRequest(
    location="",
    span=(0.0, 1.0),
    start=0.0,
    window_frames=20,
    clips=(CENTRE,),
    num_frames=5,
    height=48,
    width=64,
)


def clip_plan(offset: float = 0.0, step: int = 1) -> ClipPlan:
    return replace(CENTRE, offset=offset, step=step)


def test_clips_lie_in_the_window_and_the_window_in_the_span() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        total, num_frames = int(rng.integers(1, 120)), int(rng.integers(1, 14))
        first, last = sorted(rng.uniform(0, 1, 2).tolist())
        plans = tuple(clip_plan(float(rng.random()), int(rng.integers(1, 6))) for _ in range(3))
        request = replace(
            REQUEST,
            span=(first, last),
            start=float(rng.random()),
            window_frames=num_frames + int(rng.integers(0, 40)),
            num_frames=num_frames,
            clips=plans,
        )
        begin, end = span_frames((first, last), total)
        if end - begin < num_frames:
            with pytest.raises(UnusableVideoError, match="too short"):
                place_clips(request, total)
            continue
        clips = place_clips(request, total)
        seen = [index for clip in clips for index in clip]
        assert begin <= min(seen)
        assert max(seen) < end
        assert max(seen) - min(seen) < request.window_frames
        for clip, plan in zip(clips, plans, strict=True):
            assert len(clip) == num_frames
            assert 1 <= clip.step <= plan.step


def test_all_places_are_reached_equally() -> None:
    """A fraction just under 1 leads to the last place, and 0 to the first."""
    last = 1 - 1e-9
    starts = [
        place_clips(replace(REQUEST, start=start), 100)[0].start
        for start in (0.0, *np.arange(0.5, 81) / 81, last)
    ]
    assert starts == [0, *range(81), 80]
    offsets = [
        place_clips(replace(REQUEST, clips=(clip_plan(offset, step=3),)), 100)[0]
        for offset in (0.0, *np.arange(0.5, 8) / 8, last)
    ]
    assert offsets[0] == range(0, 13, 3)
    assert [clip.start for clip in offsets] == [0, *range(8), 7]
    assert offsets[-1][-1] == REQUEST.window_frames - 1


def test_a_step_that_does_not_fit_becomes_the_largest_that_does() -> None:
    wide = replace(REQUEST, num_frames=9, window_frames=34, clips=(clip_plan(0.9, step=3),))
    assert place_clips(wide, 20)[0].step == 2
    assert place_clips(wide, 9) == [range(9)]
    with pytest.raises(UnusableVideoError, match="has 8 frames, a clip needs 9 frames at step 1"):
        place_clips(wide, 8)
    assert place_clips(replace(REQUEST, num_frames=1, start=0.99), 1) == [range(1)]


def test_spans_that_meet_share_no_frame() -> None:
    for total in range(300):
        for boundary in (0.1, 1 / 3, 0.5, 0.8):
            first, middle = span_frames((0.0, boundary), total)
            assert (first, span_frames((boundary, 1.0), total)) == (0, (middle, total))


def test_a_window_must_hold_a_clip() -> None:
    for changes in ({"window_frames": 4}, {"num_frames": 0}, {"clips": ()}):
        with pytest.raises(ValueError, match="no window of"):
            replace(REQUEST, **changes)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "a.mp4"
    return write_video(path, moving_frames(40), gop=7, lossless=True)


def upright(pictures: list[Frames]) -> Frames:
    """[T, C, H, W], signed."""
    return np.stack(pictures).transpose(0, 3, 1, 2).astype(int)


def test_the_clips_hold_the_planned_frames(video: Path) -> None:
    """At the video's own size nothing is scaled, so the frames can be found in the file."""
    plans = (clip_plan(), clip_plan(0.4, 2), clip_plan(0.99, 3), replace(CENTRE, flip=True))
    request = replace(REQUEST, location=str(video), start=0.7, clips=plans)
    window = read_window(request)
    assert window.frames.shape == request.shape == (4, 5, 3, 48, 64)
    assert window.frames.dtype == np.uint8
    assert window.frames.flags.c_contiguous
    frames = sequential_frames(video)
    for clip, places, plan in zip(window.frames, place_clips(request, 40), plans, strict=True):
        expected = upright([frames[place] for place in places])
        expected = expected[..., ::-1] if plan.flip else expected
        assert np.abs(clip - expected).mean() < 1.0
        other = upright([frames[place - 1] for place in places])
        assert np.abs(clip - (other[..., ::-1] if plan.flip else other)).mean() > 2.0


def test_a_frame_of_several_clips_is_decoded_once(video: Path) -> None:
    alone = replace(REQUEST, location=str(video), start=0.5)
    together = replace(alone, clips=(CENTRE,) * 4)
    one, four = read_window(alone), read_window(together)
    assert four.decoded == one.decoded
    for clip in four.frames:
        np.testing.assert_array_equal(clip, one.frames[0])


def test_clips_do_not_depend_on_each_other(video: Path) -> None:
    plans = (clip_plan(0.9, 3), clip_plan(), replace(clip_plan(0.3, 2), contrast=0.9, hue=0.03))
    request = replace(REQUEST, location=str(video), start=0.3, clips=plans)
    together = read_window(request).frames
    for plan, clip in zip(plans, together, strict=True):
        alone = read_window(replace(request, clips=(plan,))).frames[0]
        np.testing.assert_array_equal(clip, alone)


def test_a_video_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnusableVideoError, match="missing"):
        read_window(replace(REQUEST, location=str(tmp_path / "absent.mp4")))
    short = write_video(tmp_path / "short.mp4", moving_frames(4))
    with pytest.raises(UnusableVideoError, match="too short: has 4 frames"):
        read_window(replace(REQUEST, location=str(short)))


def test_little_is_loaded() -> None:
    script = (
        "import sys, data_pipeline.decoding.sandbox_process\n"
        "print([name for name in ('ray', 'torch', 'pyarrow', 'pandas') if name in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert loaded.stdout == "[]\n"
