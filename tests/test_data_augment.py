"""Crops lie where the plan says and distort nothing; colours follow the formulas."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.augment import crop_box, jitter_colours, make_clip
from data_pipeline.decode import UnusableVideoError, VideoFile
from data_pipeline.plan import ClipPlan
from tests.data_videos import Frames, moving_frames

PLAIN = ClipPlan(video=0, start=0.0, step=1, crop_scale=1.0, crop_x=0.5, crop_y=0.5)


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
    plan = replace(PLAIN, crop_scale=scale, crop_x=x, crop_y=y)
    clip = make_clip([frame_of(gradient(*frame_size))], plan, clip_size)
    assert clip.shape == (1, 3, *clip_size)

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
    box = crop_box((480, 704), (100, 100), PLAIN, pixel_aspect=2.0)
    assert (box.height, box.width) == (480, 240)


def test_flip_mirrors_every_frame() -> None:
    frames = [frame_of(picture) for picture in moving_frames(3)]
    clip = make_clip(frames, PLAIN, (16, 16))
    mirrored = make_clip(frames, replace(PLAIN, flip=True), (16, 16))
    np.testing.assert_array_equal(mirrored, clip[..., ::-1])
    assert mirrored.flags.c_contiguous


def test_shrinking_averages() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    clip = make_clip([frame_of(noise)], PLAIN, (8, 8))
    expected = noise.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    # The scaler's output passes through the limited range and back.
    assert np.abs(clip[0] - expected).max() < 4


def test_a_rotated_video_is_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    picture = gradient(64, 96)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv444p"
        stream.set_display_rotation(90)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    with VideoFile(str(path)) as video:
        clip = make_clip(video.frames([0]), PLAIN, (96, 64))
    upright = np.rot90(picture).transpose(2, 0, 1).astype(int)
    assert np.abs(clip[0] - upright).max() <= 6


def test_frames_that_change_their_size_are_refused() -> None:
    frames = [frame_of(gradient(64, 64)), frame_of(gradient(32, 64))]
    with pytest.raises(UnusableVideoError, match="changes its frame size"):
        make_clip(frames, PLAIN, (16, 16))


def reference_jitter(clip: Frames, plan: ClipPlan) -> NDArray[np.float64]:
    """The four steps one by one, in float64, by way of (Y, U, V) instead of a matrix."""
    red, green, blue = clip.astype(np.float64).transpose(1, 0, 2, 3) * plan.brightness

    def grey(*rgb: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.tensordot((0.299, 0.587, 0.114), np.stack(rgb), axes=1)

    pivot = grey(red, green, blue).mean()
    red, green, blue = (pivot + plan.contrast * (c - pivot) for c in (red, green, blue))
    luma = grey(red, green, blue)
    red, green, blue = (luma + plan.saturation * (c - luma) for c in (red, green, blue))

    u, v = 0.492 * (blue - luma), 0.877 * (red - luma)
    # Against the clock in the (U, V) plane, red is before yellow and green: rising hue.
    angle = 2 * np.pi * plan.hue
    u, v = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
    red, blue = luma + v / 0.877, luma + u / 0.492
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    clipped: NDArray[np.float64] = np.clip(np.stack([red, green, blue], axis=1), 0, 255)
    return clipped


@pytest.mark.parametrize(
    "plan",
    [
        replace(PLAIN, brightness=1.1),
        replace(PLAIN, contrast=0.9),
        replace(PLAIN, saturation=1.1),
        replace(PLAIN, hue=0.05),
        replace(PLAIN, hue=-0.03),
        replace(PLAIN, brightness=0.93, contrast=1.07, saturation=0.9, hue=-0.05),
        replace(PLAIN, brightness=1.1, contrast=1.1, saturation=1.1, hue=0.05),
    ],
)
def test_colours_agree_with_a_float_reference(plan: ClipPlan) -> None:
    clip = np.random.default_rng(1).integers(0, 256, (4, 3, 12, 20)).astype(np.uint8)
    jittered = jitter_colours(clip, plan)
    assert jittered.dtype == np.uint8
    assert jittered.flags.c_contiguous
    # Half a level of rounding, and constants of three digits.
    assert np.abs(jittered - reference_jitter(clip, plan)).max() < 1.0


def test_rising_hue_turns_red_towards_yellow() -> None:
    red = np.zeros((1, 3, 2, 2), np.uint8)
    red[:, 0] = 160
    turned = jitter_colours(red, replace(PLAIN, hue=0.05))[0, :, 0, 0]
    assert turned[1] > turned[2]


def test_no_jitter_changes_nothing() -> None:
    clip = moving_frames(2).transpose(0, 3, 1, 2).copy()
    np.testing.assert_array_equal(jitter_colours(clip, PLAIN), clip)
