"""Crop, scale, mirror and colour jitter: from decoded frames to a uint8 clip.

Crop and scale run in FFmpeg's own scaler before the conversion to RGB, so that only the small
picture is ever converted and copied. The aspect ratio of what is seen never changes.
"""

from dataclasses import dataclass

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from data_pipeline.decode import UnusableVideoError
from data_pipeline.plan import ClipPlan

Frames = NDArray[np.uint8]

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of R, G and B in grey (BT.601)."""

RGB_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""Grey, and the plane of colour in which a change of hue is a rotation."""


@dataclass(frozen=True)
class Crop:
    """A rectangle of a frame, in pixels. All even: chroma has half the resolution."""

    x: int
    y: int
    width: int
    height: int


def crop_box(
    frame_size: tuple[int, int], clip_size: tuple[int, int], plan: ClipPlan, pixel_aspect: float
) -> Crop:
    """The plan's crop of a frame; both sizes are (height, width).

    It has the clip's aspect ratio as seen, so with pixels that are not square its sides differ
    by `pixel_aspect` (width of a pixel over its height).
    """
    height, width = frame_size
    aspect = clip_size[1] / clip_size[0] / pixel_aspect
    largest = min(height, width / aspect)
    crop_height = _even(plan.crop_scale * largest, height)
    crop_width = _even(plan.crop_scale * largest * aspect, width)
    return Crop(
        x=int(plan.crop_x * (width - crop_width)) // 2 * 2,
        y=int(plan.crop_y * (height - crop_height)) // 2 * 2,
        width=crop_width,
        height=crop_height,
    )


def make_clip(
    frames: list[VideoFrame], plan: ClipPlan, clip_size: tuple[int, int], pixel_aspect: float = 1.0
) -> Frames:
    """Crop, scale, mirror and jitter decoded frames as the plan says.

    Returns uint8 [T, C, H, W], C-contiguous and writable; `clip_size` is (H, W).

    Raises UnusableVideoError where the frames differ in size or format.
    """
    clip = resize_frames(frames, plan, clip_size, pixel_aspect)
    if plan.flip:
        clip = clip[:, :, ::-1]
    return jitter_colours(np.ascontiguousarray(clip.transpose(0, 3, 1, 2)), plan)


def resize_frames(
    frames: list[VideoFrame], plan: ClipPlan, clip_size: tuple[int, int], pixel_aspect: float
) -> Frames:
    """Crop and scale: uint8 [T, H, W, C]."""
    first = frames[0]
    turns = _quarter_turns(first)
    graph = Graph()
    graph.threads = 1
    nodes = [
        graph.add_buffer(
            width=first.width,
            height=first.height,
            format=first.format,
            time_base=first.time_base,
        )
    ]
    nodes += [graph.add("transpose", "cclock") for _ in range(turns)]
    seen_size = (first.height, first.width) if turns % 2 == 0 else (first.width, first.height)
    box = crop_box(seen_size, clip_size, plan, pixel_aspect if turns % 2 == 0 else 1 / pixel_aspect)
    nodes.append(graph.add("crop", f"{box.width}:{box.height}:{box.x}:{box.y}"))
    # Averaging when shrinking; `area` would repeat pixels when enlarging. The other flags make
    # the result the same on every CPU and keep colour at full resolution.
    shrinks = box.height >= clip_size[0]
    flags = ("area" if shrinks else "bicubic") + "+full_chroma_int+accurate_rnd+bitexact"
    nodes.append(graph.add("scale", f"{clip_size[1]}:{clip_size[0]}:flags={flags}"))
    nodes.append(graph.add("format", "rgb24"))
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()

    clip = np.empty((len(frames), *clip_size, 3), np.uint8)
    for index, frame in enumerate(frames):
        if (frame.width, frame.height) != (first.width, first.height) or (
            frame.format.name != first.format.name
        ):
            raise UnusableVideoError("changes its frame size or pixel format within a clip")
        graph.vpush(frame)
        clip[index] = graph.vpull().to_ndarray()
    return clip


def jitter_colours(clip: Frames, plan: ClipPlan) -> Frames:
    """Brightness, contrast, saturation and hue of a clip, uint8 [T, C, H, W], the same for all.

    Each of the four is an affine map of the RGB values: saturation and hue scale and turn the
    colour plane and leave grey alone, contrast pivots on the clip's mean grey. So they are
    multiplied out and applied in one pass, rounding once.
    """
    if (plan.brightness, plan.contrast, plan.saturation, plan.hue) == (1.0, 1.0, 1.0, 0.0):
        return clip
    mean_grey = plan.brightness * float(LUMA @ clip.mean(axis=(0, 2, 3), dtype=np.float64))
    matrix = plan.contrast * plan.brightness * _colour_matrix(plan.saturation, plan.hue)
    offset = (1.0 - plan.contrast) * mean_grey

    frames, channels, height, width = clip.shape
    values = clip.reshape(frames, channels, height * width).astype(np.float32)
    values = matrix.astype(np.float32) @ values
    values += np.float32(offset + 0.5)
    np.clip(values, 0, 255, out=values)
    return values.astype(np.uint8).reshape(clip.shape)


def _colour_matrix(saturation: float, hue: float) -> NDArray[np.float64]:
    """RGB to RGB: the colour plane scaled by `saturation` and turned by `hue` turns."""
    angle = 2 * np.pi * hue
    cosine, sine = saturation * np.cos(angle), saturation * np.sin(angle)
    # From I to Q is clockwise in the circle of hues, on which red is before yellow and green.
    turn = np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]])
    matrix: NDArray[np.float64] = np.linalg.inv(RGB_TO_YIQ) @ turn @ RGB_TO_YIQ
    return matrix


def _even(size: float, limit: int) -> int:
    """The even number nearest to `size`, at least 2, at most `limit`."""
    return max(2, min(2 * round(size / 2), limit // 2 * 2))


def _quarter_turns(frame: VideoFrame) -> int:
    """Quarter turns against the clock that put a frame upright."""
    return round(frame.rotation / 90) % 4
