"""Colours agree with a float64 reference of all that happens to the pixels on the way."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.crops import CropSize, crop_box
from data_pipeline.decoding.augment import jitter_colours
from data_pipeline.decoding.video_file import VideoFile
from data_pipeline.errors import UnusableVideoError
from data_pipeline.plan import CENTRE, ClipPlan
from tests.helpers.data_videos import make_clip, moving_frames

Floats = NDArray[np.float64]

BT601, BT709, UNSPECIFIED, RESERVED = 6, 1, 2, 3
"""Numbers of colour matrices (ITU-T H.273)."""

JITTER = replace(
    CENTRE,
    flip=True,
    brightness=1.08,
    contrast=0.93,
    saturation=1.09,
    hue=-0.04,
    crop=CropSize("part", 0.9),
)


def luma_weights(matrix: int) -> tuple[float, float]:
    """Those of red and blue."""
    return (0.2126, 0.0722) if matrix == BT709 else (0.299, 0.114)


def levels(bits: int, full: bool) -> tuple[float, float, float, float]:
    """Black, the distance from black to white, no colour, and the distance to full colour."""
    scale = 2 ** (bits - 8)
    if full:
        return 0.0, 2**bits - 1.0, 128.0 * scale, (2**bits - 1) / 2
    return 16.0 * scale, 219.0 * scale, 128.0 * scale, 112.0 * scale


def yuv_frame(rgb: Floats, pixel_format: str, matrix: int, full: bool, tag: int) -> av.VideoFrame:
    """A frame of float RGB [H, W, 3] in [0, 255] in 4:2:0, by the formulas of BT.601 and 709."""
    bits = 10 if "10" in pixel_format else 8
    black, white, grey, colour = levels(bits, full)
    red_weight, blue_weight = luma_weights(matrix)
    red, green, blue = rgb.transpose(2, 0, 1) / 255
    luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    u, v = (blue - luma) / (1 - blue_weight), (red - luma) / (1 - red_weight)
    height, width = luma.shape
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, values in zip(
        frame.planes,
        (black + white * luma, *(grey + colour * quarter(c) for c in (u, v))),
        strict=True,
    ):
        depth = np.uint8 if bits == 8 else np.uint16
        rows = np.zeros((plane.height, plane.line_size // depth().itemsize), depth)
        rows[:, : plane.width] = np.round(values)
        plane.update(rows.tobytes())
    frame.time_base, frame.pts = Fraction(1, 24), 0
    frame.colorspace = tag
    if full and "j" not in pixel_format:
        frame.color_range = 2
    return frame


def quarter(values: Floats) -> Floats:
    """Half of the resolution each way."""
    height, width = values.shape
    smaller: Floats = values.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    return smaller


def rgb_of(frame: av.VideoFrame, matrix: int, full: bool) -> Floats:
    """A 4:2:0 frame as RGB [3, H, W], every colour sample standing for its four pixels."""
    bits = frame.format.components[0].bits
    black, white, grey, colour = levels(bits, full)
    depth = np.uint8 if bits == 8 else np.uint16
    y, u, v = (
        np.frombuffer(plane, depth).reshape(plane.height, -1)[:, : plane.width].astype(np.float64)
        for plane in frame.planes
    )
    y = (y - black) / white
    u, v = ((c - grey) / colour for c in (u, v))
    u, v = (c.repeat(2, axis=0).repeat(2, axis=1) for c in (u, v))
    red_weight, blue_weight = luma_weights(matrix)
    red, blue = y + (1 - red_weight) * v, y + (1 - blue_weight) * u
    green = (y - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return 255 * np.stack([red, green, blue])


def averaging(size: int, small: int) -> Floats:
    """[small, size]: the part that each old pixel has in each new one."""
    edges = np.arange(small + 1) * size / small
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    parts: Floats = np.clip(overlap, 0, None) * small / size
    return parts


def reference_clip(rgb: Floats, plan: ClipPlan, clip_size: tuple[int, int]) -> Floats:
    """One frame [3, H, W] as a clip [1, 3, h, w]."""
    size = (rgb.shape[1], rgb.shape[2])
    box = crop_box(size, clip_size, plan.crop, (plan.crop_x, plan.crop_y), 1.0)
    crop = rgb[:, box.y : box.y + box.height, box.x : box.x + box.width]
    small = averaging(box.height, clip_size[0]) @ crop @ averaging(box.width, clip_size[1]).T
    clip = np.clip(small, 0, 255)[None]
    return reference_jitter(clip[..., ::-1] if plan.flip else clip, plan)


def reference_jitter(clip: Floats, plan: ClipPlan) -> Floats:
    """The four steps one by one, by way of (Y, U, V) instead of a matrix."""
    red, green, blue = clip.transpose(1, 0, 2, 3) * plan.brightness

    def grey(*rgb: Floats) -> Floats:
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
    clipped: Floats = np.clip(np.stack([red, green, blue], axis=1), 0, 255)
    return clipped


def scene(height: int, width: int) -> Floats:
    """Smooth colours with grain, off the ends of the scale: float [H, W, 3]."""
    smooth = moving_frames(1, height, width, seed=3)[0].astype(np.float64)
    grain = np.random.default_rng(4).normal(0, 6, (height, width, 3))
    colours: Floats = np.clip(127 + 0.6 * (smooth - 127) + grain, 20, 235)
    return colours


KINDS_OF_COLOUR = [
    ("yuv420p", BT601, False, BT601),
    ("yuv420p", BT709, False, BT709),
    ("yuv420p", BT709, True, BT709),
    ("yuvj420p", BT601, True, UNSPECIFIED),
    ("yuv420p10le", BT601, False, BT601),
    ("yuv420p10le", BT709, False, BT709),
    # What states no matrix is taken for BT.601, as FFmpeg does.
    ("yuv420p", BT601, False, UNSPECIFIED),
    ("yuv420p", BT601, False, RESERVED),
]
"""Pixel format, matrix, whether the range is full, and the tag that tells the matrix."""


@pytest.mark.parametrize(
    ("size", "plan", "mean", "most"),
    [
        # Nothing but the rounding of the result.
        ((270, 480), CENTRE, 0.3, 0.55),
        ((144, 146), CENTRE, 0.3, 0.55),
        ((720, 1280), CENTRE, 0.3, 0.55),
        # A second rounding, and constants of three digits.
        ((270, 480), JITTER, 0.4, 1.5),
        # Colour, at half of the frame's resolution, is enlarged: smoothly, not by repeating.
        ((96, 160), CENTRE, 0.7, 6.0),
        ((96, 160), JITTER, 0.8, 6.0),
    ],
)
@pytest.mark.parametrize("colours", KINDS_OF_COLOUR, ids=str)
def test_a_clip_agrees_with_a_float_reference(
    colours: tuple[str, int, bool, int],
    size: tuple[int, int],
    plan: ClipPlan,
    mean: float,
    most: float,
) -> None:
    pixel_format, matrix, full, tag = colours
    frame = yuv_frame(scene(*size), pixel_format, matrix, full, tag)
    expected = reference_clip(rgb_of(frame, matrix, full), plan, (64, 64))
    error = np.abs(make_clip([frame], plan, (64, 64)) - expected)
    assert error.mean() < mean
    assert error.max() < most


def test_ten_bits_of_full_range() -> None:
    """The scaler has white at 1020 instead of 1023, which is up to 0.75 levels too bright."""
    frame = yuv_frame(scene(270, 480), "yuv420p10le", BT709, True, BT709)
    expected = reference_clip(rgb_of(frame, BT709, True), CENTRE, (64, 64))
    error = make_clip([frame], CENTRE, (64, 64)) - expected
    assert 0 < error.mean() < 0.5
    assert np.abs(error).max() < 1.25


@pytest.mark.parametrize("tag", [BT601, BT709])
def test_the_matrix_that_a_file_states_is_used(tmp_path: Path, tag: int) -> None:
    frame = yuv_frame(scene(96, 128), "yuv420p", tag, False, tag)
    expected = make_clip([frame], CENTRE, (48, 48))
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        stream.codec_context.colorspace = tag
        frame.time_base, frame.pts = Fraction(1, 24), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames: list[av.VideoFrame] = []
    with VideoFile(str(path)) as video:
        video.read([0], lambda _, frame: frames.append(frame))
    np.testing.assert_array_equal(make_clip(frames, CENTRE, (48, 48)), expected)


@pytest.mark.parametrize("tag", [0, 3, 9, 16, 18, 255])
def test_primaries_and_transfer_curves_play_no_part(tag: int) -> None:
    frame = yuv_frame(scene(96, 128), "yuv420p", BT709, False, BT709)
    expected = make_clip([frame], CENTRE, (48, 48))
    frame.color_primaries, frame.color_trc = tag, tag
    np.testing.assert_array_equal(make_clip([frame], CENTRE, (48, 48)), expected)


@pytest.mark.parametrize("tag", [8, 14, 255])
def test_a_matrix_that_the_scaler_does_not_know_is_refused(tag: int) -> None:
    frame = yuv_frame(scene(96, 128), "yuv420p", BT601, False, tag)
    with pytest.raises(UnusableVideoError, match="has colours of a kind that is not known"):
        make_clip([frame], CENTRE, (48, 48))


@pytest.mark.parametrize(
    "plan",
    [
        replace(CENTRE, brightness=1.1),
        replace(CENTRE, contrast=0.9),
        replace(CENTRE, saturation=1.1),
        replace(CENTRE, hue=0.05),
        replace(CENTRE, hue=-0.03),
        replace(CENTRE, brightness=0.93, contrast=1.07, saturation=0.9, hue=-0.05),
        replace(CENTRE, brightness=1.1, contrast=1.1, saturation=1.1, hue=0.05),
    ],
)
def test_colours_agree_with_a_float_reference(plan: ClipPlan) -> None:
    clip = np.random.default_rng(1).integers(0, 256, (4, 3, 12, 20)).astype(np.uint8)
    jittered = clip.copy()
    jitter_colours(jittered, plan)
    # Half a level of rounding, and constants of three digits.
    error = np.abs(jittered - reference_jitter(clip.astype(np.float64), plan))
    assert error.max() < 1.0
    assert error.mean() < 0.3


def test_rising_hue_turns_red_towards_yellow() -> None:
    red = np.zeros((1, 3, 2, 2), np.uint8)
    red[:, 0] = 160
    jitter_colours(red, replace(CENTRE, hue=0.05))
    assert red[0, 1, 0, 0] > red[0, 2, 0, 0]


def test_no_jitter_changes_nothing() -> None:
    clip = moving_frames(2).transpose(0, 3, 1, 2).copy()
    jittered = clip.copy()
    jitter_colours(jittered, CENTRE)
    np.testing.assert_array_equal(jittered, clip)
