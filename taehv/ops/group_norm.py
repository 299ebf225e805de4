"""BatchNorm over fixed groups of the batch, with the ReLU behind it."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from taehv.ops.compiling import Compiled

Normalised = tuple[Tensor, Tensor, Tensor]


def relu_group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Normalised:
    """Each group of the batch normalised by its own mean and variance, then ReLU.

    Args:
        x: [N, C, H, W], of `groups` equal groups side by side.
        weight, bias: [C].
        eps: added to the variance.

    Returns:
        The result, [N, C, H, W], and without gradients each group's mean and its variance without
        bias, as `torch.nn.BatchNorm2d` keeps them: float32 (or float64) [groups, C].
    """
    # Group by group, it would be a thousand small kernels a step. Who looks at every operation, by
    # a dispatch mode, sees none of those that are compiled.
    if x.is_cuda and not is_in_torch_dispatch_mode():
        normalised: Normalised = _compiled()(x, weight, bias, groups, eps)
        return normalised
    return group_by_group(x, weight, bias, groups, eps)


def group_by_group(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Normalised:
    """`relu_group_norm` by PyTorch's own BatchNorm."""
    statistics = torch.zeros(2, groups, len(weight), dtype=weight.dtype, device=x.device)
    outputs = [
        # momentum 1 has it write this group's own statistics.
        torch.relu_(F.batch_norm(part, mean, variance, weight, bias, True, momentum=1.0, eps=eps))
        for part, mean, variance in zip(x.chunk(groups), *statistics, strict=True)
    ]
    return torch.cat(outputs) if groups > 1 else outputs[0], *statistics


def all_at_once(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Normalised:
    """`relu_group_norm` in elementary operations, for a compiler to put together."""
    rows, channels, height, width = x.shape
    apart = x.view(groups, rows // groups, channels, height, width).to(weight.dtype)
    variance, mean = torch.var_mean(apart, (1, 3, 4), correction=0, keepdim=True)
    along = (1, 1, channels, 1, 1)
    scaled = (apart - mean) * torch.rsqrt(variance + eps) * weight.view(along) + bias.view(along)
    values = rows // groups * height * width
    unbiased = variance.detach().view(groups, channels) * (values / (values - 1))
    out = scaled.relu().to(x.dtype).reshape(x.shape)
    return out, mean.detach().view(groups, channels), unbiased


@cache
def _compiled() -> Compiled:
    return Compiled(all_at_once, "discriminator's normalisation")
