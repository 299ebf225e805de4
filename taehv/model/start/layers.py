"""What the solved encoder and decoder have in common: running a layer, and writing one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taehv.model.blocks import MemoryLayer, TGrow, TPool
from taehv.model.start.least_squares import Chunks
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


def move_mean_to(constant: int, weight: Tensor, mean: Tensor) -> None:
    """Make a kernel [C', C, size, size] that was fitted to activations less their mean [C] one for
    the activations as they are, in place.

    The channel `constant` is 1 everywhere inside the picture, and, as all channels are, 0 in the
    padding. So the mean is taken away by its taps, and the padding stands for the mean.
    """
    weight[:, constant] -= torch.einsum("oiyx,i->oyx", weight, mean)


def as_parameter(values: Tensor | None) -> Tensor:
    """A bias that is known to be there."""
    assert values is not None
    return values


def last_convolution(block: nn.Module) -> nn.Conv2d:
    """Of a memory block: the one whose result is added to what came in."""
    *_, last = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    return last
