"""What the solved encoder and decoder have in common: running a layer, and writing one.

Of activations the last chunk is that of `colour_corners`. No fit looks at it, since such clips are
rare; every range does, since what lies outside of a range does not come through a ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taehv.model.blocks import MemoryLayer, TGrow, TPool
from taehv.model.start.least_squares import Chunks, channel_means, fit_convolution
from taehv.ops.fused import interleave_steps, stack_steps

CLIPS_PER_CHUNK = 16


def colour_corners(clips: Tensor) -> Tensor:
    """A chunk of clips of one colour each, the eight corners of all colours, shaped as the clips
    [N, T, 3, H, W]. Nothing in [0, 1] has a mean colour outside of them."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).to(clips)
    repeated = corners.repeat(CLIPS_PER_CHUNK // len(corners), 1)
    return repeated[:, None, :, None, None].expand(-1, *clips.shape[1:]).contiguous()


def head(x: Chunks, chunks: int) -> Chunks:
    """The first chunks to fit to, and the corners."""
    return [*x[:-1][:chunks], x[-1]]


def steps_of(chunks: Chunks, first: int, count: int) -> Chunks:
    """Time steps `first` to `first + count` of activations."""
    return [x[first * CLIPS_PER_CHUNK : (first + count) * CLIPS_PER_CHUNK] for x in chunks]


def count_steps(chunks: Chunks) -> int:
    """T of [T * N, C, H, W]."""
    return len(chunks[0]) // CLIPS_PER_CHUNK


def every(chunks: Chunks, stride: int, first: int) -> Chunks:
    """Each `stride`-th time step from `first` on."""
    return [torch.cat(torch.split(x, CLIPS_PER_CHUNK)[first::stride]) for x in chunks]


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


def about_their_mean(x: Chunks, parts: int = 1) -> tuple[Chunks, Tensor]:
    """Activations less the mean of each channel, and the means [C].

    parts: of how many activations side by side the channels consist. The last channel of each is a
    constant: 1, or 0 where the whole part is 0, which it stays then. The constant is left as it
    is, and its mean is given as 0.
    """
    sums = channel_means(x).reshape(parts, -1)
    constant = sums[:, -1:]
    means = torch.where(constant > 0, sums / constant, 0)
    means[:, -1] = 0
    mean, width = means.flatten(), means.shape[1]
    return [
        y - mean[:, None, None] * y[:, width - 1 :: width].repeat_interleave(width, 1) for y in x
    ], mean


def move_mean(weight: Tensor, mean: Tensor, parts: int = 1) -> None:
    """Make a kernel [C', C, size, size] that was fitted to activations less their mean [C] one for
    the activations as they are, in place.

    The constant is 1 everywhere inside the picture, and, as all channels are, 0 in the padding. So
    the mean is taken away by its taps, and the padding stands for the mean.
    """
    width = len(mean) // parts
    for part, means in zip(torch.split(weight, width, 1), torch.split(mean, width), strict=True):
        part[:, -1] -= torch.einsum("oiyx,i->oyx", part, means)


def fit_rows(
    weight: Tensor, x: Chunks, targets: Chunks, first: int, solved: int, parts: int = 1
) -> None:
    """Make a kernel [C', C, size, size], in place, that whose convolution of activations is nearest
    to the targets [steps * N, C', H, W].

    Args:
        x: activations, with the chunk of the corners, which the targets lack.
        first: the step of the activations that is the targets' first.
        solved: of each part, the first channels, which alone are looked at beside the constant.
        parts: see `about_their_mean`.
    """
    about_mean, mean = about_their_mean(x[:-1], parts)
    width = len(mean) // parts
    used = [k * width + c for k in range(parts) for c in (*range(solved), width - 1)]
    steps = count_steps(targets)
    given = [y[:, used] for y in steps_of(about_mean, first, steps)]
    weight[:] = 0
    weight[:, used] = fit_convolution(given, targets, weight.shape[-1])
    move_mean(weight, mean, parts)


def as_parameter(values: Tensor | None) -> Tensor:
    """A bias that is known to be there."""
    assert values is not None
    return values


def last_convolution(block: nn.Module) -> nn.Conv2d:
    """Of a memory block: the one whose result is added to what came in."""
    *_, last = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    return last
