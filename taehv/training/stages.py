"""Stages: parts of a run, one after the other, that have some settings of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

CLIP_SIZE = ("height", "width", "num_frames")


@dataclass(frozen=True)
class Stage:
    """A part of a run. A setting that is None is as the rest of the configuration has it.

    Raises ValueError, with the key's name, where a value makes no sense by itself.
    """

    # For pydantic, which checks what a file says: a key that is none is an error.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    share: float = 1.0
    """Length, in proportion to the other stages': together they have train.max_steps."""
    height: int | None = None
    """In place of data.height."""
    width: int | None = None
    """In place of data.width."""
    num_frames: int | None = None
    """In place of data.num_frames."""
    global_batch_size: int | None = None
    """In place of train.global_batch_size."""
    max_clips_per_pass: int | None = None
    """The smaller of this and train.max_clips_per_pass holds."""
    learning_rate: float | None = None
    """In place of optim.learning_rate, the peak. The warm-up and the fall are the whole run's."""
    seraena: float | None = None
    """In place of loss.seraena; 0: without the adversary, which costs no time then."""
    freeze_encoder: bool | None = None
    """In place of train.freeze_encoder. What one stage freezes, no later one can train."""

    def __post_init__(self) -> None:
        if not 0 < self.share < math.inf:
            raise ValueError(f"train.stages: share is {self.share}: it must be positive")
        for name, value in self.clip_size.items():
            if value < 1:
                raise ValueError(f"train.stages: {name} is {value}: it must be at least 1")

    @property
    def clip_size(self) -> dict[str, Any]:
        """What the clips have of their own, by the keys of the data section."""
        sizes = {name: getattr(self, name) for name in CLIP_SIZE}
        return {name: size for name, size in sizes.items() if size is not None}

    def __str__(self) -> str:
        """The settings of its own, as a log shows them."""
        own = {name: value for name, value in vars(self).items() if value is not None}
        del own["share"]
        return ", ".join(f"{name} {value}" for name, value in own.items()) or "as configured"


def steps_of_stages(stages: Sequence[Stage], max_steps: int) -> list[range]:
    """The steps that each stage makes, in the order of the stages, without a gap.

    Raises ValueError where one of them would have none.
    """
    total = sum(stage.share for stage in stages)
    parts = [sum(stage.share for stage in stages[:count]) for count in range(len(stages) + 1)]
    steps = [range(*pair) for pair in pairwise(round(part / total * max_steps) for part in parts)]
    if not all(steps):
        raise ValueError(
            f"train.max_steps is {max_steps}: too few for the {len(stages)} stages of train.stages"
        )
    return steps
