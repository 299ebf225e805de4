"""The same as `decoder`, for the super decoder's layers.

Its memory blocks have no ReLU after their sum, so that features need no constant to pass them, and
PixelShuffle gives each of the four pixels weights of its own: no pattern is out of reach.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from taehv.model.blocks import SuperMemBlock, TGrow
from taehv.model.start.blocks_of_pixels import Picture, count_steps, steps_of
from taehv.model.start.decoder import CHUNKS, components, solve_colours, solve_growth
from taehv.model.start.layers import about_their_mean, as_parameter, move_mean, run_layers
from taehv.model.start.least_squares import Chunks, Range, fit_convolution


def solve_super_decoder(
    decoder: nn.Sequential, latents: Chunks, picture: Picture, block: tuple[int, int]
) -> None:
    """Write the weights. The arguments are those of `decoder.solve_decoder`."""
    first, *layers = decoder
    assert isinstance(first, nn.Conv2d)
    carried = min(first.in_channels, (first.out_channels - 1) // 2)
    first.weight[: 2 * carried] = 0
    first.weight[-1] = 0
    first.weight[range(carried), range(carried), 0, 0] = 1
    x = run_layers([first], latents)
    assert isinstance(layers[0], SuperMemBlock)
    _remember(layers[0], carried, Range.of([chunk[:, :carried] for chunk in x]))
    frames, side = block
    for chunks in CHUNKS:
        blocks, (conv, relu, shuffle, grow), layers = layers[:3], layers[3:7], layers[7:]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(grow, TGrow)
        x, picture = run_layers(blocks, x[:chunks]), picture.head(chunks)
        side //= 2
        _solve_shuffled(conv, x, *picture.blocks(frames, side))
        x = run_layers([conv, relu, shuffle], x)
        frames //= grow.stride
        solve_growth(grow, x, *picture.blocks(frames, side))
        x = run_layers([grow], x)
    (last,) = layers
    assert isinstance(last, nn.Conv2d)
    solve_colours(last, x, *picture.blocks(frames, side))


def _remember(block: SuperMemBlock, count: int, found: Range) -> None:
    """Put the features of the step before beside those of this step, `count` channels further, and
    make the constant. The step before the first is all 0."""
    depthwise, widen, _, narrow = block.conv
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(widen, nn.Conv2d)
    assert isinstance(narrow, nn.Conv2d)
    width = narrow.out_channels
    past, own = torch.arange(count) + width, torch.arange(count)
    depthwise.weight[past] = 0
    depthwise.weight[past, 0, 3, 3] = 1
    # The ReLU between the two wants them above 0.
    widen.weight[: count + 1] = 0
    widen.weight[own, past, 0, 0] = 1 / found.size
    bias = as_parameter(widen.bias)
    bias[:count] = -found.low / found.size
    bias[count] = 1
    target = own + count
    narrow.weight[target, own, 0, 0] = found.size
    narrow.weight[target, count, 0, 0] = found.low
    narrow.weight[-1, count, 0, 0] = 1


def _solve_shuffled(conv: nn.Conv2d, x: Chunks, blocks: Chunks, first: int) -> None:
    """Principal components of the blocks, for each of the four pixels that a pixel becomes."""
    about_mean, mean = about_their_mean(x)
    about_mean = steps_of(about_mean, first, count_steps(blocks))
    count = min(conv.out_channels // 4 - 1, blocks[0].shape[1])
    targets = [F.pixel_unshuffle(y, 2) for y in components(blocks, count)]
    kernel = fit_convolution(about_mean, targets, 3)
    found = Range.of([F.conv2d(y, kernel, padding=1) for y in about_mean])
    low = found.low.reshape(count, 4).amin(1).repeat_interleave(4)
    size = found.high.reshape(count, 4).amax(1).repeat_interleave(4) - low
    rows = 4 * count
    conv.weight[:rows] = kernel / size[:, None, None, None]
    conv.weight[-4:] = 0
    move_mean(conv.weight[:-4], mean)
    bias = as_parameter(conv.bias)
    bias[:rows] = -low / size
    bias[-4:] = 1
