"""THE sample order: which clip sample n is, as a pure function of the seed and of n.

`sample` is a global index, n = step * global_batch + slot. A window is a visit to a video: one
stretch of it, decoded once, from which C clips are cut. An epoch visits each of V videos once (of
few videos several times, see below), in an order given by a keyed bijection of [0, V), so nothing
is stored per video and any sample is reached at once. So an epoch has V * C samples.

The C clips of a window are kept apart. R * B windows that follow each other, B being the samples of
a training step, are a group; its samples are C rounds, in each of which every window of the group
gives one clip:

    window of a group      0  1 .. B-1 | B .. 2B-1 | ... | .. RB-1     (R rows of B columns)
    round 0                each window once, column by column, the rows turned by a random shift
    round 1                each window once, turned by other shifts
    ...

A step takes one sample of each column, so it never holds two clips of a window; and the clips of a
window all fall into the same slot of a step, so only one training worker needs it. (In the last
group of an epoch, which takes up the remainder, both hold nearly always.) Where there are fewer
videos than a group has windows, an epoch is as many rounds of visits as it takes to fill one.

A plan holds fractions only. The frames follow from the file's own frame count when it is decoded,
so what is learned about a file never changes the plan of another sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.crops import LARGEST, NATIVE, CropSize, drawn

GROUP_BYTES = 256 * 2**20
"""About the clips of a group: decoded and not yet trained on, they wait in memory."""

MAX_ROWS = 16
"""Steps between the clips of a window, about; more would mix no better and fill memory."""

ROUNDS = 8
"""Rounds of the Feistel network; four suffice for a pseudo-random order of large sets."""

MASK_64 = 2**64 - 1
GOLDEN_RATIO = 0.6180339887498949
R2_STEPS = (0.7548776662466927, 0.5698402909980532)
"""Multiples of both, modulo 1, fill the unit square evenly (Roberts 2018, "The unreasonable
effectiveness of quasirandom sequences"), as those of the golden ratio fill the unit interval."""
ORDER, CLIP, WINDOW, SHIFT = 0, 1, 2, 3
"""What a random stream is for: part of its key."""


class WindowKey(NamedTuple):
    """A visit to a video."""

    epoch: int
    position: int
    """Of the visit in its epoch."""


class Place(NamedTuple):
    """Where a sample comes from."""

    window: WindowKey
    clip: int
    """Which of the window's clips, 0 to C - 1."""


@dataclass(frozen=True)
class WindowPlan:
    """The stretch of a video that clips are cut from."""

    video: int
    """Index into the video set."""

    start: float
    """Where the window starts, in [0, 1) of the starts that are possible."""


@dataclass(frozen=True)
class ClipPlan:
    """How a clip is cut from its window and augmented. The same for all frames."""

    offset: float
    """Where the clip starts, in [0, 1) of the starts that are possible in the window."""

    step: int
    """Distance between the frames, in frames of the video."""

    crop: CropSize
    """Size of the crop."""

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


CENTRE = ClipPlan(offset=0.0, step=1, crop=LARGEST, crop_x=0.5, crop_y=0.5)
"""A window itself, and the largest crop, in the middle."""

VALIDATION_KINDS = ("native", "shrunk")
"""The two clips of a validation window: a crop of the clip's own size, and `CENTRE`, scaled down.
Sample n is of the kind n mod 2."""


@dataclass(frozen=True)
class SampleOrder:
    """The plan of a whole training, or, without `augment`, of validation.

    Validation takes the clips of `VALIDATION_KINDS` from each window, with starts and places of
    crops that spread evenly over the windows.
    """

    seed: int
    """Key of every random draw; not negative."""

    num_videos: int
    """V, at least 1."""

    batch: int
    """B, the samples of a training step over all workers."""

    config: DataConfig
    augment: bool

    @property
    def clips_per_window(self) -> int:
        """C."""
        return self.config.clips_per_window if self.augment else len(VALIDATION_KINDS)

    @property
    def window_frames(self) -> int:
        """Frames of a window, where the video has as many.

        As many as its clips have together, so that on average a decoded frame is used once, and
        no fewer than the longest clip spans.
        """
        if not self.augment:
            return self.config.num_frames
        longest = (self.config.num_frames - 1) * self.config.max_frame_step + 1
        return max(longest, self.config.num_frames * self.clips_per_window)

    @property
    def group_windows(self) -> int:
        """Windows of a group: R * B, or 1 where nothing is to be kept apart: in validation, or
        where a window has one clip."""
        if self.clips_per_window == 1 or not self.augment:
            return 1
        row_bytes = self.batch * self.clips_per_window * self.config.clip_bytes
        return self.batch * max(1, min(MAX_ROWS, GROUP_BYTES // row_bytes))

    @property
    def epoch_windows(self) -> int:
        """Windows of an epoch: a multiple of V, V itself but for few videos."""
        return self.num_videos * -(-self.group_windows // self.num_videos)

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch."""
        return self.epoch_windows * self.clips_per_window

    def locate(self, sample: int) -> Place:
        """The window and the clip that a sample is."""
        epoch, index = divmod(sample, self.epoch_samples)
        size = self.group_windows
        last_group = self.epoch_windows // size - 1
        group = min(index // (size * self.clips_per_window), last_group)
        first = group * size
        if group == last_group:
            size = self.epoch_windows - first
        clip, position = divmod(index - first * self.clips_per_window, size)

        row, column = divmod(position, self.batch)
        rows = (size - column + self.batch - 1) // self.batch
        row = (row + self._shift(epoch, group, clip, column)) % rows
        return Place(WindowKey(epoch, first + row * self.batch + column), clip)

    def window(self, key: WindowKey, attempt: int) -> WindowPlan:
        """The plan of a window; `attempt` > 0 replaces a video that could not be used.

        Attempts 0 to V - 1 name each video once. A replacement is drawn anew, since another
        video has other frames.
        """
        visit = self._visit(key)
        visiting_round, position = divmod(visit, self.num_videos)
        order = visiting_order(self.seed, visiting_round, self.num_videos)
        video = order((position + attempt) % self.num_videos)
        if not self.augment:
            return WindowPlan(video, start=(visit + 0.5) * GOLDEN_RATIO % 1.0)
        return WindowPlan(video, start=float(self._rng(WINDOW, *key, attempt).random()))

    def clip(self, place: Place, attempt: int) -> ClipPlan:
        """The plan of a clip."""
        if not self.augment:
            if VALIDATION_KINDS[place.clip] == "shrunk":
                return CENTRE
            across, down = even_place(self._visit(place.window))
            return replace(CENTRE, crop=NATIVE, crop_x=across, crop_y=down)
        config = self.config
        rng = self._rng(CLIP, *place.window, place.clip, attempt)

        def around(centre: float, spread: float) -> float:
            return float(rng.uniform(centre - spread, centre + spread))

        # The order of the draws is part of the contract: a change makes another data set.
        return ClipPlan(
            offset=float(rng.random()),
            step=int(rng.integers(config.min_frame_step, config.max_frame_step + 1)),
            crop=drawn(config.crops, float(rng.random())),
            crop_x=float(rng.random()),
            crop_y=float(rng.random()),
            flip=bool(rng.random() < config.flip_probability),
            brightness=around(1.0, config.brightness),
            contrast=around(1.0, config.contrast),
            saturation=around(1.0, config.saturation),
            hue=around(0.0, config.hue),
        )

    def _visit(self, key: WindowKey) -> int:
        """The number of a window among all of the training."""
        return key.epoch * self.epoch_windows + key.position

    def _shift(self, epoch: int, group: int, clip: int, column: int) -> int:
        """By how many rows a column is turned in a round."""
        return _mix(
            _mix(_mix(_mix(self.seed ^ SHIFT) + epoch) + group) + clip * self.batch + column
        )

    def _rng(self, purpose: int, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, purpose, *key))


def even_place(number: int) -> tuple[float, float]:
    """Where crop `number` lies, so that crops 0, 1, ... fill the frame evenly: 0 to 1, left to
    right and top to bottom. See `R2_STEPS`."""
    across, down = ((number + 0.5) * step % 1.0 for step in R2_STEPS)
    return across, down


@lru_cache(maxsize=16)
def visiting_order(seed: int, visiting_round: int, size: int) -> Callable[[int], int]:
    """A pseudo-random bijection of [0, size) keyed by (seed, round), in constant memory.

    A Feistel network permutes the smallest power of four that holds the range; an image
    outside of the range is sent through again until it falls inside (cycle walking), at most
    four times on average.
    """
    keys = (
        np.random.SeedSequence((seed, ORDER, visiting_round))
        .generate_state(ROUNDS, np.uint64)
        .tolist()
    )
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
    value = value + 0x9E3779B97F4A7C15 & MASK_64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK_64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK_64
    return value ^ value >> 31
