"""Crops: how large the part of a frame is that a clip shows, and where it lies.

A crop's side lies between the clip's own size, at which every pixel of the clip is a pixel of the
video, and the largest crop of the clip's aspect ratio that fits the frame. Where a video is smaller
than the clip, its largest crop is enlarged.
"""

import re
from dataclasses import dataclass
from typing import Literal

PARTS = re.compile(r"(\d*\.?\d+)-(\d*\.?\d+)")
SCALE_DRAWS = 1000
"""That a mean scale is taken over."""

ALLOWED = "mixed, uniform, native, or two parts of the largest crop such as 0.8-1.0"


@dataclass(frozen=True)
class CropSize:
    """The size of a crop, before the size of the video is known."""

    measure: Literal["side", "scale", "part"]
    """What `value` is a number of. side: from the clip's own size (0) to the largest crop (1), in
    pixels of the crop's side. scale: the same, in the scale at which the video is shown, which is
    the clip's side over the crop's: from 1 down to that of the largest crop. part: the part of the
    largest crop's side, in (0, 1]."""

    value: float

    def rows(self, clip_rows: float, largest: float) -> float:
        """The crop's height in pixels of the frame, where those are square.

        clip_rows: the height at which the clip would show the video's own pixels.
        largest: the height of the largest crop.
        """
        if self.measure == "part":
            return self.value * largest
        if largest <= clip_rows:
            return largest
        if self.measure == "side":
            return clip_rows + self.value * (largest - clip_rows)
        scale = 1 + self.value * (clip_rows / largest - 1)
        return clip_rows / scale


LARGEST = CropSize("part", 1.0)
NATIVE = CropSize("side", 0.0)


def is_setting(crops: str) -> bool:
    """Whether `data.crops` may be this."""
    if parts := PARTS.fullmatch(crops):
        low, high = map(float, parts.groups())
        return 0 < low <= high <= 1
    return crops in ("mixed", "uniform", "native")


def are_whole_pictures(crops: str) -> bool:
    """Whether `data.crops` is of parts of the largest crop, scaled down."""
    return PARTS.fullmatch(crops) is not None


def drawn(crops: str, draw: float) -> CropSize:
    """The size that a draw from [0, 1) means under the setting `data.crops`."""
    if parts := PARTS.fullmatch(crops):
        low, high = map(float, parts.groups())
        return CropSize("part", low + (high - low) * draw)
    sizes = {
        "mixed": CropSize("scale", draw),
        "uniform": CropSize("side", draw),
        "native": NATIVE,
    }
    return sizes[crops]


def mean_scale(crops: str, clip_size: tuple[int, int], frame_size: tuple[int, int]) -> float:
    """The mean of the scale at which clips show a video under the setting `data.crops`: the clip's
    side over the crop's, 1 where its pixels are the video's. Both sizes are (height, width), of
    square pixels."""
    (rows, columns), (height, width) = clip_size, frame_size
    largest = min(height, width * rows / columns)
    draws = [(k + 0.5) / SCALE_DRAWS for k in range(SCALE_DRAWS)]
    return sum(rows / drawn(crops, draw).rows(rows, largest) for draw in draws) / SCALE_DRAWS


@dataclass(frozen=True)
class Crop:
    """A rectangle of a frame, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def turned(self, size: tuple[int, int]) -> "Crop":
        """The same rectangle in the picture of `size` (height, width) turned against the clock."""
        return Crop(self.y, size[1] - self.x - self.width, self.height, self.width)

    def with_margin(self, margin: int, size: tuple[int, int]) -> "Crop":
        """A larger one about this one, at least `margin` wider on each side, as far as a picture of
        `size` (height, width) goes. It begins and ends at multiples of `margin`, or at the end of
        the last whole pair of pixels."""
        x, y = (max(0, side - margin) // margin * margin for side in (self.x, self.y))
        right, bottom = (
            min(limit // 2 * 2, -(-end // margin) * margin + margin)
            for end, limit in ((self.x + self.width, size[1]), (self.y + self.height, size[0]))
        )
        return Crop(x, y, right - x, bottom - y)


def crop_box(
    frame_size: tuple[int, int],
    clip_size: tuple[int, int],
    crop: CropSize,
    place: tuple[float, float],
    pixel_aspect: float,
) -> Crop:
    """A crop of a frame; both sizes are (height, width).

    It has the clip's aspect ratio as seen, so with pixels that are not square its sides differ
    by `pixel_aspect` (width of a pixel over its height), and neither is smaller than the clip's
    where the frame is large enough. All its numbers are even, since chroma has half the
    resolution; but where it has the very size of the clip, only its sides must be the clip's.
    place: from (0, 0), left and top, to (1, 1), right and bottom.
    """
    height, width = frame_size
    aspect = clip_size[1] / clip_size[0] / pixel_aspect
    largest = min(height, width / aspect)
    rows = crop.rows(clip_size[0] * max(1.0, pixel_aspect), largest)
    # The last row or column of an odd number of them has colours that spread over two.
    whole = height // 2 * 2, width // 2 * 2
    is_native = crop.measure != "part" and (round(rows, 6), round(rows * aspect, 6)) == clip_size
    if is_native and clip_size[0] <= whole[0] and clip_size[1] <= whole[1]:
        (crop_height, crop_width), (height, width), step = clip_size, whole, 1
    else:
        crop_height, crop_width, step = _even(rows, height), _even(rows * aspect, width), 2
    return Crop(
        x=int(place[0] * (width - crop_width)) // step * step,
        y=int(place[1] * (height - crop_height)) // step * step,
        width=crop_width,
        height=crop_height,
    )


def _even(size: float, limit: int) -> int:
    """The even number nearest to `size`, at least 2, at most `limit`."""
    return max(2, min(2 * round(size / 2), limit // 2 * 2))
