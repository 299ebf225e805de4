"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Ema(Generic[Network]):
    """The exponential moving average of `module`'s weights, in float32, as a network.

    The decay rises as min(decay, (1 + step) / (10 + step)), so that a short run's average is not
    dominated by its initial weights (the warm-up of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, module: Network, decay: float) -> None:
        self.decay = decay
        self.network: Network = copy.deepcopy(module).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: Network, step: int, skip_update: Tensor) -> None:
        """Move towards `module` after its step `step`, counted from 0, unless the scalar
        `skip_update` is 1; the CPU never waits to read it from a GPU."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weight = (1 - decay) * (1 - skip_update)
        averages: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = list(module.parameters())
        if weight.device.type == "cpu":
            torch._foreach_lerp_(averages, current, weight.item())
        else:
            _lerp(averages, current, weight)


def _lerp(averages: list[Tensor], targets: list[Tensor], weight: Tensor) -> None:
    """`_foreach_lerp_` for a weight on the device, which PyTorch does not fuse."""
    changes = torch._foreach_sub(targets, averages)
    torch._foreach_mul_(changes, weight)
    torch._foreach_add_(averages, changes)
