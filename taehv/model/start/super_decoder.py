"""The same as `decoder`, for the super decoder's layers.

Its memory blocks have no ReLU after their sum, so that features need no constant to pass them, and
PixelShuffle gives each of the four pixels weights of its own: no pattern is out of reach.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from taehv.model.blocks import SuperMemBlock, TGrow
from taehv.model.start.blocks_of_pixels import Picture
from taehv.model.start.decoder import CHUNKS, solve_colours, solve_growth
from taehv.model.start.layers import as_parameter, fit_rows, head, run_layers
from taehv.model.start.least_squares import Chunks, Range, components


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
    solved = 2 * carried
    frames, side = block
    for chunks in CHUNKS:
        blocks, (conv, relu, shuffle, grow), layers = layers[:3], layers[3:7], layers[7:]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(grow, TGrow)
        x, picture = run_layers(blocks, head(x, chunks)), picture.head(chunks)
        side //= 2
        solved = _solve_shuffled(conv, x, solved, *picture.blocks(frames, side))
        x = run_layers([conv, relu, shuffle], x)
        frames //= grow.stride
        pixels, begin = picture.blocks(frames, side)
        features = components(pixels, grow.conv.in_channels - 1)
        solved = solve_growth(grow, x, solved, features, begin)
        x = run_layers([grow], x)
    (last,) = layers
    assert isinstance(last, nn.Conv2d)
    solve_colours(last, x, solved, *picture.blocks(frames, side))


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


def _solve_shuffled(conv: nn.Conv2d, x: Chunks, solved: int, blocks: Chunks, first: int) -> int:
    """Principal components of the blocks, for each of the four pixels that a pixel becomes; how
    many."""
    count = min(conv.out_channels // 4 - 1, blocks[0].shape[1])
    rows = conv.weight[: 4 * count]
    fit_rows(rows, x, [F.pixel_unshuffle(y, 2) for y in components(blocks, count)], first, solved)
    found = Range.of([F.conv2d(y, rows, padding=1) for y in x])
    low = found.low.reshape(count, 4).amin(1).repeat_interleave(4)
    size = found.high.reshape(count, 4).amax(1).repeat_interleave(4) - low
    rows /= size[:, None, None, None]
    conv.weight[-4:] = 0
    bias = as_parameter(conv.bias)
    bias[: 4 * count] = -low / size
    bias[-4:] = 1
    return count
