"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class Ema(Generic[Network]):
    """A float32 copy of `module` whose weights follow it slowly.

    The decay rises as min(decay, (1 + step) / (10 + step)), so that a short run's average is not
    dominated by its initial weights (the warm-up of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, module: Network, decay: float) -> None:
        self.decay = decay
        self.network: Network = copy.deepcopy(module).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: Network, step: int) -> None:
        """Move towards `module`, which has just made step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [p.float() for p in module.parameters()]
        torch._foreach_lerp_(list(self.network.parameters()), current, 1 - decay)
