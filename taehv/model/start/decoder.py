"""A decoder that is the best linear one which its layers can be, layer by layer.

The first channels of every stage estimate the principal components of the block of pixels that
grows out of a position; each convolution is fitted by least squares to what the real layers before
it give. The best linear estimate of a linear function of the picture is that function of the best
estimate, so that little is lost by going stage by stage. What is lost, nearest-neighbour
upsampling loses: where the latents are constant along a row, so is the picture.

The last channel of every stage is 1: the constant that moves features above 0 for a ReLU, and back.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taehv.model.blocks import MemBlock, TGrow
from taehv.model.start.blocks_of_pixels import Picture, count_steps, every, steps_of
from taehv.model.start.layers import (
    about_their_mean,
    as_parameter,
    last_convolution,
    move_mean,
    run_layers,
)
from taehv.model.start.least_squares import (
    Chunks,
    Range,
    channel_means,
    fit_convolution,
    principal_components,
)

CHUNKS = (8, 4, 2)
"""That each stage is fitted to; the more it enlarges, the more positions a clip has."""


def solve_decoder(
    decoder: nn.Sequential, latents: Chunks, picture: Picture, block: tuple[int, int]
) -> None:
    """Write the weights.

    Args:
        latents: as the encoder gives them.
        picture: what they should become.
        block: raw frames, and pixels a side (folded), that a latent becomes.
    """
    clamp, first, relu, *layers = decoder
    assert isinstance(first, nn.Conv2d)
    x = run_layers([clamp], latents)
    features = _spread(first, x)
    x = run_layers([first, relu], x)
    assert isinstance(layers[0], MemBlock)
    _remember(layers[0], features, channel_means(x))
    frames, side = block
    for stage, chunks in enumerate(CHUNKS):
        blocks, (upsample, grow, conv), layers = layers[:3], layers[3:6], layers[6:]
        assert isinstance(upsample, nn.Upsample)
        assert isinstance(grow, TGrow)
        assert isinstance(conv, nn.Conv2d)
        x, picture = run_layers(blocks, x[:chunks]), picture.head(chunks)
        frames //= grow.stride
        if grow.stride > 1:
            solve_growth(grow, x, *picture.blocks(frames, side))
            x = run_layers([grow], x)
        if upsample.scale_factor != 1:
            side //= 2
            x = run_layers([upsample], x)
        found = _solve_convolution(conv, x, *picture.blocks(frames, side), keeps_colours=side == 1)
        if stage < len(CHUNKS) - 1:
            bias = as_parameter(last_convolution(layers[0]).bias)
            bias[: len(found.low)] = -found.low / found.size
            bias[conv.out_channels - 1] = 1
        else:
            _move_without_bias(conv, found)
        x = run_layers([conv], x)
    relu, last = layers
    assert isinstance(last, nn.Conv2d)
    x = run_layers([relu], x)
    solve_colours(last, x, *picture.blocks(frames, side))


def _spread(conv: nn.Conv2d, latents: Chunks) -> int:
    """Latents, and functions of their neighbours, to less than half of the channels; how many.

    The other half is for the same of the step before. The neighbours are mixed at random: a mean of
    squares fitted to many mixtures finds what it needs.
    """
    channels, width = conv.in_channels, conv.out_channels
    count = min((width - 1) // 2, 9 * channels)
    own = min(channels, count)
    generator = torch.Generator().manual_seed(0)
    mixtures = torch.randn(count, channels, 3, 3, generator=generator) / math.sqrt(9 * channels)
    kernel = mixtures.to(conv.weight)
    kernel[:own] = 0
    kernel[range(own), range(own), 1, 1] = 1
    found = Range.of([F.conv2d(chunk, kernel, padding=1) for chunk in latents])
    bias = as_parameter(conv.bias)
    conv.weight[: 2 * count] = 0
    bias[: 2 * count] = 0
    conv.weight[:count] = kernel / found.size[:, None, None, None]
    bias[:count] = -found.low / found.size
    conv.weight[-1] = 0
    bias[-1] = 1
    return count


def _remember(block: MemBlock, count: int, mean: Tensor) -> None:
    """Put the features of the step before beside those of this step, `count` channels further.

    Before the first step all channels are 0, the constant too; the features' mean stands there.
    """
    first, _, second, _, third = block.conv
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert isinstance(third, nn.Conv2d)
    width = first.out_channels
    constant = width - 1
    own = torch.tensor([*range(count), constant])
    for conv, taken in ((first, own + width), (second, own)):
        conv.weight[own] = 0
        as_parameter(conv.bias)[own] = 0
        conv.weight[own, taken, 1, 1] = 1
    source, target = torch.arange(count), torch.arange(count) + count
    third.weight[target] = 0
    third.weight[target, source, 1, 1] = 1
    third.weight[target, constant, 1, 1] = -mean[:count]
    as_parameter(third.bias)[target] = mean[:count]


def solve_growth(grow: TGrow, x: Chunks, blocks: Chunks, first: int) -> None:
    """Each of the steps that a step grows into gets the principal components of its own block."""
    width = grow.conv.in_channels
    constant = width - 1
    about_mean, mean = about_their_mean(x)
    count = min(constant, blocks[0].shape[1])
    targets = components(blocks, count)
    targets = [y / Range.of(targets).size[:, None, None] for y in targets]
    for position, rows in enumerate(torch.split(grow.conv.weight, width)):
        # Steps that grow into a block which lies in the picture as a whole.
        begin = max(0, -(-(first - position) // grow.stride))
        wanted = every(targets, grow.stride, begin * grow.stride + position - first)
        given = steps_of(about_mean, begin, count_steps(wanted))
        rows[:constant] = 0
        rows[:count] = fit_convolution(given, wanted, 1)
        move_mean(rows, mean)
        rows[constant] = 0
        rows[constant, constant] = 1


def _solve_convolution(
    conv: nn.Conv2d, x: Chunks, blocks: Chunks, first: int, keeps_colours: bool
) -> Range:
    """Principal components of the blocks, scaled to a range of 1 and not yet moved; their range."""
    about_mean, mean = about_their_mean(x)
    about_mean = steps_of(about_mean, first, count_steps(blocks))
    count = min(conv.out_channels - 1, blocks[0].shape[1])
    if keeps_colours and count == blocks[0].shape[1]:
        centre = channel_means(blocks)[:, None, None]
        targets = [y - centre for y in blocks]
    else:
        targets = components(blocks, count)
    kernel = fit_convolution(about_mean, targets, 3)
    found = Range.of([F.conv2d(y, kernel, padding=1) for y in about_mean] + targets)
    conv.weight[:count] = kernel / found.size[:, None, None, None]
    conv.weight[-1] = 0
    move_mean(conv.weight[:-1], mean)
    return found


def _move_without_bias(conv: nn.Conv2d, found: Range) -> None:
    """Move features above 0 by the constant, which is handed on."""
    constant = conv.in_channels - 1
    conv.weight[: len(found.low), constant, 1, 1] -= found.low / found.size
    conv.weight[-1, constant, 1, 1] = 1


def solve_colours(conv: nn.Conv2d, x: Chunks, colours: Chunks, first: int) -> None:
    about_mean, mean = about_their_mean(x)
    about_mean = steps_of(about_mean, first, count_steps(colours))
    centre = channel_means(colours)
    targets = [y - centre[:, None, None] for y in colours]
    conv.weight[:] = fit_convolution(about_mean, targets, 3)
    move_mean(conv.weight, mean)
    as_parameter(conv.bias)[:] = centre


def components(blocks: Chunks, count: int) -> Chunks:
    """About their mean."""
    basis = principal_components(blocks, count)
    mean = channel_means(blocks)[:, None, None]
    return [F.conv2d(y - mean, basis[..., None, None]) for y in blocks]
