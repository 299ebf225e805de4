"""Optimizers, and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from taehv.training.soap import Soap


@dataclass(frozen=True)
class OptimConfig:
    """The generator's optimizer and its schedule, and what DeepSpeed does for both networks."""

    optimizer: Literal["soap", "adamw"] = "soap"
    """soap: Adam in the eigenbases of the gradients' covariances (`taehv.training.soap`); a fifth
    more time a step on a CPU, and more picture from it. It needs whole gradients: `zero_stage` 0.
    The discriminator has AdamW in any case."""
    learning_rate: float = 1e-4
    """Peak, reached after the warm-up. By soap the default raises a solved start of the public
    widths from its first steps on, where 3e-4 takes it down; narrower networks bear more
    (docs/recipe.md)."""
    final_learning_rate_ratio: float = 0.05
    """Learning rate at `train.max_steps`, as a fraction of the peak."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the moments."""
    weight_decay: float = 0.01
    """Decoupled, as a fraction of the learning rate."""
    gradient_clipping: float = 1.0
    """Largest gradient norm of the generator; 0: no clipping."""
    gradient_centralization: bool = True
    """Take from each gradient of a convolution its mean over the inputs, for every output channel
    (Yong et al. 2020, "Gradient Centralization"). The activations are never negative, and what all
    weights of a channel do together, move its mean, is what bounds the learning rate otherwise."""
    zero_stage: Literal[0, 1, 2] = 0
    """What DeepSpeed partitions over the workers: 0 nothing, 1 the optimizer's state, 2 the
    gradients too. (3, the weights, is of no use to a network of 11 M.) What it saves, of 90 MB of
    AdamW's state, costs thousands of small operations a step."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"optim.learning_rate is {self.learning_rate}: it must be positive")
        if not 0 <= self.final_learning_rate_ratio <= 1:
            raise ValueError(
                f"optim.final_learning_rate_ratio is {self.final_learning_rate_ratio}: 0 to 1"
            )
        for name in ("warmup_steps", "weight_decay", "gradient_clipping"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}: it cannot be negative")

    def contradiction(self) -> str:
        """What does not go together; empty: nothing. Not asked of every `OptimConfig`, since files
        and options set one key after the other."""
        if self.optimizer == "soap" and self.zero_stage:
            return (
                f"optim.zero_stage is {self.zero_stage}, which shares gradients out in parts, and "
                "optim.optimizer soap needs whole ones: set optim.zero_stage 0, or "
                "optim.optimizer adamw"
            )
        return ""

    def learning_rate_at(self, step: int, max_steps: int) -> float:
        """Linear warm-up, then a half cosine down to the final ratio; a pure function of step."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        floor = self.final_learning_rate_ratio
        return self.learning_rate * (floor + (1 - floor) * cosine)


def build_optimizer(
    parameters: Iterable[nn.Parameter], optim: OptimConfig
) -> torch.optim.AdamW | Soap:
    """Either one clips, and refuses updates, on the device (`grad_scale`, `found_inf`).

    Raises ValueError for settings that do not go together.
    """
    if fault := optim.contradiction():
        raise ValueError(fault)
    rate, betas, decay = optim.learning_rate, optim.betas, optim.weight_decay
    if optim.optimizer == "soap":
        return Soap(parameters, rate, betas, decay)
    return torch.optim.AdamW(parameters, rate, betas, weight_decay=decay, fused=True)
