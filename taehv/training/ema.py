"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Ema(Generic[Network]):
    """A copy of `module`, whose weights are float32, that follows it slowly.

    The decay rises as min(decay, (1 + step) / (10 + step)), so that a short run's average is not
    dominated by its initial weights (the warm-up of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, module: Network, decay: float) -> None:
        self.decay = decay
        self.network: Network = copy.deepcopy(module).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: Network, step: int, refused: Tensor) -> None:
        """Move towards `module`, which has just made step `step` (from 0), unless `refused`, of no
        dimension and on the device, is 1: nobody waits to know."""
        decay = min(self.decay, (1 + step) / (10 + step))
        share = (1 - decay) * (1 - refused)
        averages: list[Tensor] = list(self.network.parameters())
        current: list[Tensor] = list(module.parameters())
        if share.device.type == "cpu":
            torch._foreach_lerp_(averages, current, share.item())
        else:
            _move(averages, current, share)


def _move(averages: list[Tensor], towards: list[Tensor], share: Tensor) -> None:
    """`_foreach_lerp_` with a weight that only the device knows, for which it has no kernel that
    takes many tensors at once."""
    changes = torch._foreach_sub(towards, averages)
    torch._foreach_mul_(changes, share)
    torch._foreach_add_(averages, changes)
