"""What a network makes of pictures for which the right answer is plain: one colour, a picture that
stands still, and the same pixels in frames of several sizes.

A codec here is any function of clips, [1, T, 3, H, W] in [0, 1] -> the same shape.

Shape letters: T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from taehv.evaluation.artifacts import decibels

Codec = Callable[[Tensor], Tensor]

GREYS = {
    "black": (0.0, 0.0, 0.0),
    "dark grey": (0.25, 0.25, 0.25),
    "grey": (0.5, 0.5, 0.5),
    "light grey": (0.75, 0.75, 0.75),
    "white": (1.0, 1.0, 1.0),
}
COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "yellow": (1.0, 1.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "cyan": (0.0, 1.0, 1.0),
    "blue": (0.0, 0.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
}
"""As saturated as they can be."""

FLAT_SIDE = 64
"""Pixels of a side of the clips of one colour."""

FLAT_FRAMES = 9

STILL_FRAMES = 17
"""Of the clip of one frame."""

STILL_SIDE = 256
"""Pixels of a side of it, at most."""

SETTLING_FRAMES = 5
"""At its start, in which a network that knows nothing of a past may change its mind."""

SIZES = ((128, 128), (256, 256), (480, 848), (720, 1280))
"""Height and width of the frames around the same pixels."""

MIDDLE = 64
"""Pixels of a side of the middle that is compared between the sizes."""

SIZE_FRAMES = 9
"""Of the clips of several sizes: three latents of the public networks."""


def flat_clip(
    colour: tuple[float, float, float], device: torch.device, multiple: int = 8
) -> Tensor:
    """[1, T, 3, H, W] of one colour; a side is `FLAT_SIDE`, or the next multiple of `multiple`."""
    value = torch.tensor(colour, device=device).view(1, 1, 3, 1, 1)
    side = -(-FLAT_SIDE // multiple) * multiple
    return value.expand(1, FLAT_FRAMES, 3, side, side).contiguous()


def flat_errors(codec: Codec, device: torch.device, multiple: int = 8) -> dict[str, float]:
    """By colour, the root mean square error of a clip of it; see `flat_clip`."""
    found = {}
    for name, colour in (GREYS | COLOURS).items():
        clip = flat_clip(colour, device, multiple)
        made = codec(clip)
        # A decoder with less time upscaling gives fewer frames.
        found[name] = float((made - clip[:, : made.shape[1]]).square().mean().sqrt())
    return found


def flat_figures(errors: Mapping[str, float]) -> dict[str, float]:
    """`flat_grey`, `flat_colour`: the worst of `GREYS` and of `COLOURS`; NaN where one is."""
    return {
        name: float(np.max([errors[colour] for colour in colours]))
        for name, colours in (("flat_grey", GREYS), ("flat_colour", COLOURS))
    }


def still_part(frame: Tensor, multiple: int) -> Tensor:
    """The middle of a frame, [3, H, W], that is made to stand still: at most `STILL_SIDE` a side,
    and a multiple of `multiple`."""
    height, width = (min(side, STILL_SIDE) // multiple * multiple for side in frame.shape[-2:])
    top, left = (frame.shape[-2] - height) // 2, (frame.shape[-1] - width) // 2
    return frame[:, top : top + height, left : left + width]


def still_clip(frame: Tensor) -> Tensor:
    """A frame, [3, H, W], that stands still: [1, T, 3, H, W]."""
    return frame.expand(1, STILL_FRAMES, *frame.shape).contiguous()


def shimmer(codec: Codec, frame: Tensor) -> float:
    """Root mean square change from frame to frame of what the codec makes of a frame, [3, H, W],
    that stands still; the first `SETTLING_FRAMES` are left out."""
    made = codec(still_clip(frame))[0, SETTLING_FRAMES:]
    return float(made.diff(dim=0).square().mean().sqrt())


@dataclass(frozen=True)
class Crop:
    """A crop about the middle of a frame."""

    frames: Tensor
    """[T, 3, h, w]"""
    middle: tuple[slice, slice]
    """Rows and columns of it that all crops have."""

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)"""
        return self.frames.shape[-2], self.frames.shape[-1]

    def middle_of(self, frames: Tensor) -> Tensor:
        """Of frames shaped as its own."""
        return frames[:, :, self.middle[0], self.middle[1]]


def crops_by_size(frames: Tensor, multiple: int) -> list[Crop]:
    """Crops about the same middle, the smallest first; none where the smallest does not fit.

    frames: [T, 3, H, W]; the last crop is of their own size, or of as much of it as `SIZES` ends
    with. multiple: height, width and places are multiples of it, so that a pixel lies in the same
    place of its latent in all of them.
    """
    height, width = frames.shape[-2:]
    own = min(height, SIZES[-1][0]), min(width, SIZES[-1][1])
    sizes = [
        (h // multiple * multiple, w // multiple * multiple)
        for h, w in (*SIZES, own)
        if SIZES[0][0] <= h <= own[0] and SIZES[0][1] <= w <= own[1]
    ]
    found = []
    for size in dict.fromkeys(sizes):
        places, middle = [], []
        for whole, side in zip((height, width), size, strict=True):
            centre = whole // 2 // multiple * multiple
            first = min(max(centre - side // 2, 0), whole - side) // multiple * multiple
            places.append(slice(first, first + side))
            middle.append(slice(centre - first - MIDDLE // 2, centre - first + MIDDLE // 2))
        found.append(Crop(frames[:, :, places[0], places[1]], (middle[0], middle[1])))
    return found


def errors_by_size(codec: Codec, frames: Tensor, multiple: int) -> dict[tuple[int, int], float]:
    """Mean squared error in the middle, by the crop's height and width; see `crops_by_size`."""
    found = {}
    for crop in crops_by_size(frames, multiple):
        error = (codec(crop.frames[None])[0] - crop.frames).square()
        found[crop.size] = float(crop.middle_of(error).mean())
    return found


@dataclass(frozen=True)
class Probes:
    """What the probes found."""

    flat: dict[str, float]
    """By colour; see `flat_errors`."""
    shimmer: dict[str, float]
    """By video."""
    sizes: dict[str, dict[tuple[int, int], float]]
    """By video; see `errors_by_size`."""

    def figures(self) -> dict[str, float]:
        """`flat_grey`, `flat_colour`: root mean square error, the worst of `GREYS` and `COLOURS`.
        `shimmer`: the same, of the worst video. `size`: by how much the middle of the largest crop
        is below that of the best, dB, the mean over videos. What was not measured is left out."""
        lost = [
            decibels(errors[max(errors)], float(np.min([*errors.values()])))
            for errors in self.sizes.values()
            if len(errors) > 1
        ]
        return {
            **flat_figures(self.flat),
            **({"shimmer": float(np.max([*self.shimmer.values()]))} if self.shimmer else {}),
            **({"size": fmean(lost)} if lost else {}),
        }
