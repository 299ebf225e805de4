"""Slots: positions in the global batch, and their distribution over the workers.

Position j of the global batch is slot j. What a slot holds at a step, and every random draw made
for it, depends on (seed, step, slot) alone. A *group* is a fixed run of slots over which the
discriminator's BatchNorm and the correction's spread are taken. Workers are given whole groups,
so the numbers of a step do not depend on how many workers there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

SURPLUS = -1
"""Stands for a slot or a sample where a worker has none. Its weight in the losses is 0."""


class Purpose(IntEnum):
    """The purpose of a random draw, so that two draws for the same slot are independent."""

    REPLAY_INSERT = 1
    REPLAY_SAMPLE = 2
    REAL_OR_FAKE = 3


def keyed_generator(seed: int, step: int, slot: int, purpose: Purpose) -> np.random.Generator:
    """The random generator of one draw: a pure function of its arguments."""
    return np.random.default_rng([seed, step, slot, purpose])


@dataclass(frozen=True)
class SlotLayout:
    """Which slots each of `workers` workers has, and in how many passes it processes them."""

    global_batch_size: int
    slots_per_group: int
    workers: int
    max_clips_per_pass: int = 0
    """0: no limit."""
    sample_offset: int = 0
    """By how much the samples of a step lie beyond `step * global_batch_size`, where another stage
    of the run has used more of them, or fewer, than steps of this batch would have."""

    def __post_init__(self) -> None:
        if self.global_batch_size % self.slots_per_group:
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} is not a multiple of "
                f"train.slots_per_group {self.slots_per_group}"
            )
        if self.workers > self.groups:
            raise ValueError(
                f"{self.workers} workers cannot share {self.groups} groups of slots "
                f"(train.global_batch_size {self.global_batch_size} / train.slots_per_group "
                f"{self.slots_per_group}): use at most {self.groups} workers, a larger batch, "
                "or smaller groups"
            )
        if 0 < self.max_clips_per_pass < self.slots_per_group:
            raise ValueError(
                f"train.max_clips_per_pass {self.max_clips_per_pass} is less than one group: "
                f"lower train.slots_per_group, now {self.slots_per_group}"
            )

    @property
    def groups(self) -> int:
        return self.global_batch_size // self.slots_per_group

    @property
    def groups_per_worker(self) -> int:
        """Rounded up: where the workers do not divide the groups, some of these are surplus."""
        return -(-self.groups // self.workers)

    @property
    def slots_per_worker(self) -> int:
        return self.groups_per_worker * self.slots_per_group

    @property
    def passes(self) -> int:
        """Accumulation steps: the fewest equal passes that respect `max_clips_per_pass`."""
        limit = self.max_clips_per_pass or self.slots_per_worker
        return next(
            passes
            for passes in range(1, self.groups_per_worker + 1)
            if self.groups_per_worker % passes == 0 and self.slots_per_worker // passes <= limit
        )

    @property
    def slots_per_pass(self) -> int:
        return self.slots_per_worker // self.passes

    def slots(self, rank: int) -> np.ndarray:
        """int64 [slots_per_worker]: this worker's slots, `SURPLUS` where it has none."""
        first = rank * self.slots_per_worker
        slots = np.arange(first, first + self.slots_per_worker, dtype=np.int64)
        return np.where(slots < self.global_batch_size, slots, SURPLUS)

    def samples(self, step: int, rank: int) -> np.ndarray:
        """int64 [slots_per_worker]: the global sample index in each of this worker's slots."""
        slots = self.slots(rank)
        first = step * self.global_batch_size + self.sample_offset
        return np.where(slots == SURPLUS, SURPLUS, first + slots)

    def schedule(self, rank: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """`samples` for every step from `start` up to, not including, `stop`."""
        return (self.samples(step, rank) for step in range(start, stop))
