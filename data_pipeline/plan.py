"""THE sample order: which clip sample n is, as a pure function of the seed and of n.

`sample` is a global index, n = step * global_batch + slot. Epoch e = n // V and position
i = n % V for V videos. Each epoch visits each video once, in an order given by a keyed
bijection of [0, V), so nothing is stored per video and any sample is reached at once.

A plan holds fractions only. The start frame follows from the file's own frame count when it is
decoded, so what is learned about a file never changes the plan of another sample.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_pipeline.config import DataConfig

ROUNDS = 8
"""Rounds of the Feistel network; four suffice for a pseudo-random order of large sets."""

MASK_64 = 2**64 - 1
GOLDEN_RATIO = 0.6180339887498949
ORDER, CLIP = 0, 1
"""What a random stream is for: part of its key."""


@dataclass(frozen=True)
class ClipPlan:
    """What is read of which video, and how it is augmented. The same for all frames."""

    video: int
    """Index into the video set."""

    start: float
    """Where the window starts, in [0, 1) of the starts that are possible."""

    step: int
    """Distance between the frames, in frames of the video."""

    crop_scale: float
    """Size of the crop, as a part of the largest that fits."""

    crop_x: float
    """Place of the crop, from 0 (left) to 1 (right)."""

    crop_y: float
    """Place of the crop, from 0 (top) to 1 (bottom)."""

    flip: bool = False
    """Mirror left to right."""

    brightness: float = 1.0
    """Factor on all values."""

    contrast: float = 1.0
    """Factor on the distance to the clip's mean grey."""

    saturation: float = 1.0
    """Factor on the distance to a pixel's own grey."""

    hue: float = 0.0
    """Angle by which the hue is turned, in full turns."""


def plan_clip(
    seed: int, sample: int, num_videos: int, attempt: int, config: DataConfig, augment: bool
) -> ClipPlan:
    """The plan of a sample; `attempt` > 0 replaces a video that could not be used.

    Attempts 0 .. num_videos - 1 of a sample name each video once. A replacement is drawn anew,
    since another video has other frames.

    Without `augment`: the largest centre crop, step 1, no flip or jitter, and starts that spread
    evenly over the samples.
    """
    epoch, position = divmod(sample, num_videos)
    video = visiting_order(seed, epoch, num_videos)((position + attempt) % num_videos)
    if not augment:
        start = (sample + 0.5) * GOLDEN_RATIO % 1.0
        return ClipPlan(video, start, step=1, crop_scale=1.0, crop_x=0.5, crop_y=0.5)

    rng = np.random.default_rng((seed, CLIP, epoch, position, attempt))

    def around(centre: float, spread: float) -> float:
        return float(rng.uniform(centre - spread, centre + spread))

    # The order of the draws is part of the contract: a change makes another data set.
    return ClipPlan(
        video=video,
        start=float(rng.random()),
        step=int(rng.integers(config.min_frame_step, config.max_frame_step + 1)),
        crop_scale=float(rng.uniform(config.min_crop_scale, config.max_crop_scale)),
        crop_x=float(rng.random()),
        crop_y=float(rng.random()),
        flip=bool(rng.random() < config.flip_probability),
        brightness=around(1.0, config.brightness),
        contrast=around(1.0, config.contrast),
        saturation=around(1.0, config.saturation),
        hue=around(0.0, config.hue),
    )


@lru_cache(maxsize=16)
def visiting_order(seed: int, epoch: int, size: int) -> Callable[[int], int]:
    """A pseudo-random bijection of [0, size) keyed by (seed, epoch), in constant memory.

    A Feistel network permutes the smallest power of four that holds the range; an image
    outside of the range is sent through again until it falls inside (cycle walking), at most
    four times on average.
    """
    keys = np.random.SeedSequence((seed, ORDER, epoch)).generate_state(ROUNDS, np.uint64).tolist()
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1

    def permute(value: int) -> int:
        left, right = value >> half_bits, value & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return left << half_bits | right

    def order(position: int) -> int:
        value = permute(position)
        while value >= size:
            value = permute(value)
        return value

    return order


def _mix(value: int) -> int:
    """The finaliser of splitmix64: every bit of the result depends on every bit of `value`."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK_64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK_64
    return value ^ value >> 31
