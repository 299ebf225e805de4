"""Crops lie where the plan says, upright and not distorted."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_pipeline.crops import LARGEST, NATIVE, CropSize, crop_box
from data_pipeline.decoding.video_file import VideoFile
from data_pipeline.errors import UnusableVideoError
from data_pipeline.plan import CENTRE
from tests.helpers.data_videos import Frames, make_clip, moving_frames


def gradient(height: int, width: int) -> Frames:
    """Red tells the place across, green the place down, both in units of a whole frame / 255."""
    picture = np.zeros((height, width, 3))
    picture[:, :, 0] = (np.arange(width) + 0.5) / width * 255
    picture[:, :, 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    return (picture + 0.5).astype(np.uint8)


def frame_of(picture: Frames) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame.time_base = Fraction(1, 24)
    return frame


@pytest.mark.parametrize("clip_size", [(32, 32), (24, 48), (48, 24), (120, 200)])
@pytest.mark.parametrize("frame_size", [(96, 160), (160, 96), (101, 75)])
@pytest.mark.parametrize(
    ("scale", "x", "y"), [(1.0, 0.5, 0.5), (0.8, 0.0, 1.0), (0.87, 1.0, 0.0), (0.93, 0.31, 0.77)]
)
def test_the_clip_shows_the_crop(
    clip_size: tuple[int, int], frame_size: tuple[int, int], scale: float, x: float, y: float
) -> None:
    plan = replace(CENTRE, crop=CropSize("part", scale), crop_x=x, crop_y=y)
    clip = make_clip([frame_of(gradient(*frame_size))], plan, clip_size)

    height, width = frame_size
    # The largest rectangle of the clip's aspect ratio, in real numbers.
    largest = min(height / clip_size[0], width / clip_size[1])
    crop_height, crop_width = (scale * largest * side for side in clip_size)
    across = x * (width - crop_width) + (np.arange(clip_size[1]) + 0.5) / clip_size[1] * crop_width
    down = y * (height - crop_height) + (np.arange(clip_size[0]) + 0.5) / clip_size[0] * crop_height
    # Sides and places are even, which moves an edge by at most three pixels; the picture's own
    # border repeats when enlarging.
    inner = slice(2, -2)
    for seen, expected, side in (
        (clip[0, 0].mean(axis=0), across, width),
        (clip[0, 1].mean(axis=1), down, height),
    ):
        error = np.abs(seen / 255 * side - expected)[inner]
        assert error.max() < 3.0 + side / 255


def test_pixels_that_are_not_square_keep_the_aspect_ratio_as_seen() -> None:
    box = crop_box((480, 704), (100, 100), LARGEST, (0.5, 0.5), pixel_aspect=2.0)
    assert (box.height, box.width) == (480, 240)


def test_flip_mirrors_every_frame() -> None:
    frames = [frame_of(picture) for picture in moving_frames(3)]
    clip = make_clip(frames, CENTRE, (16, 16))
    mirrored = make_clip(frames, replace(CENTRE, flip=True), (16, 16))
    np.testing.assert_array_equal(mirrored, clip[..., ::-1])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_rotated_video_is_turned_upright(tmp_path: Path, degrees: int) -> None:
    path = tmp_path / "turned.mp4"
    picture = gradient(64, 96)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv444p"
        stream.set_display_rotation(degrees)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    upright = np.rot90(picture, degrees // 90)
    plan = replace(CENTRE, crop=CropSize("part", 0.8), crop_x=0.9, crop_y=0.2)
    clip_size = (40, 50)
    expected = make_clip([frame_of(np.ascontiguousarray(upright))], plan, clip_size)
    frames: list[av.VideoFrame] = []
    with VideoFile(str(path)) as video:
        video.read([0], lambda _, frame: frames.append(frame))
    error = np.abs(make_clip(frames, plan, clip_size) - expected.astype(int))
    assert error.max() <= 8
    assert error.mean() < 1.5


def test_frames_that_change_their_size_are_refused() -> None:
    frames = [frame_of(gradient(64, 64)), frame_of(gradient(32, 64))]
    with pytest.raises(UnusableVideoError, match="changes its frame size"):
        make_clip(frames, CENTRE, (16, 16))


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le", "yuv444p", "gray", "yuvj422p"])
@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 1.0), (0.31, 0.77), (0.5, 0.02)])
def test_a_native_crop_is_the_frames_own_pixels(
    pixel_format: str, place: tuple[float, float]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
    frame = frame_of(noise).reformat(format=pixel_format)
    whole = make_clip([frame], CENTRE, (90, 150))
    for height, width in ((32, 32), (33, 47), (90, 64)):
        plan = replace(CENTRE, crop=NATIVE, crop_x=place[0], crop_y=place[1])
        clip = make_clip([frame], plan, (height, width))
        y, x = int(place[1] * (90 - height)), int(place[0] * (150 - width))
        np.testing.assert_array_equal(clip, whole[:, :, y : y + height, x : x + width])
        mirrored = make_clip([frame], replace(plan, flip=True), (height, width))
        np.testing.assert_array_equal(mirrored, clip[..., ::-1])


def test_a_native_crop_of_a_turned_video_is_its_own_pixels(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
    frames: list[av.VideoFrame] = []
    with VideoFile(str(path)) as video:
        video.read([0], lambda _, frame: frames.append(frame))
    whole = make_clip(frames, CENTRE, (96, 64))
    plan = replace(CENTRE, crop=NATIVE, crop_x=0.5, crop_y=0.25)
    clip = make_clip(frames, plan, (32, 24))
    np.testing.assert_array_equal(clip, whole[:, :, 16:48, 20:44])


@pytest.mark.parametrize("aspect", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("draw", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("measure", ["side", "scale"])
def test_crops_lie_between_the_clips_own_size_and_the_largest(
    measure: Any, draw: float, aspect: float
) -> None:
    box = crop_box((480, 640), (64, 80), CropSize(measure, draw), (0.5, 0.5), aspect)
    assert 64 <= box.height <= 480
    assert 80 <= box.width <= 640
    assert box.width * aspect / box.height == pytest.approx(80 / 64, rel=0.05)
    small = crop_box((48, 200), (64, 80), CropSize(measure, draw), (0.5, 0.5), 1.0)
    assert (small.height, small.width) == (48, 60)


def test_scales_and_sides_are_drawn_evenly() -> None:
    draws = np.linspace(0, 1, 10_000)
    scales = [64 / CropSize("scale", draw).rows(64, 640) for draw in draws]
    sides = [CropSize("side", draw).rows(64, 640) for draw in draws]
    for values, low, high in ((scales, 0.1, 1.0), (sides, 64, 640)):
        quartiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quartiles, np.linspace(low, high, 5), rtol=1e-3)
