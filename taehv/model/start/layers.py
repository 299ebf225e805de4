"""What the solved encoder and decoder have in common: running a layer, and writing one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taehv.model.blocks import MemoryLayer, TGrow, TPool
from taehv.model.start.least_squares import Chunks, channel_means
from taehv.ops.fused import interleave_steps, stack_steps

CLIPS_PER_CHUNK = 16


def run_layer(layer: nn.Module, x: Tensor, clips: int) -> Tensor:
    """One layer, as it stands; activations [T * N, C, H, W], time outermost."""
    if isinstance(layer, MemoryLayer):
        remembered: Tensor = layer(x, None, clips)
        return remembered
    if isinstance(layer, TPool):
        pooled: Tensor = layer.conv(stack_steps(x, clips, layer.stride))
        return pooled
    if isinstance(layer, TGrow):
        return interleave_steps(layer.conv(x).chunk(layer.stride, 1), clips)
    result: Tensor = layer(x)
    return result


def run_layers(layers: list[nn.Module], chunks: Chunks) -> Chunks:
    """Layers one after the other, chunk by chunk."""
    results = []
    for x in chunks:
        for layer in layers:
            x = run_layer(layer, x, CLIPS_PER_CHUNK)
        results.append(x)
    return results


def about_their_mean(x: Chunks) -> tuple[Chunks, Tensor]:
    """Activations less the mean of each channel, and the means [C]. The last channel, the constant
    1, stays as it is, and its mean is given as 0."""
    mean = channel_means(x)
    mean[-1] = 0
    return [chunk - mean[:, None, None] for chunk in x], mean


def move_mean(weight: Tensor, mean: Tensor) -> None:
    """Make a kernel [C', C, size, size] that was fitted to activations less their mean [C] one for
    the activations as they are, in place.

    The constant is 1 everywhere inside the picture, and, as all channels are, 0 in the padding. So
    the mean is taken away by its taps, and the padding stands for the mean.
    """
    weight[:, -1] -= torch.einsum("oiyx,i->oyx", weight, mean)


def as_parameter(values: Tensor | None) -> Tensor:
    """A bias that is known to be there."""
    assert values is not None
    return values


def last_convolution(block: nn.Module) -> nn.Conv2d:
    """Of a memory block: the one whose result is added to what came in."""
    *_, last = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    return last
