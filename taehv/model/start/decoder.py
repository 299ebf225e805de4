"""A decoder that is the best linear one which its layers can be, layer by layer.

The first channels of every stage estimate features of the block of pixels that grows out of a
position; each convolution is fitted by least squares to what the real layers before it give. The
best linear estimate of a linear function of the picture is that function of the best estimate, so
that little is lost by going stage by stage. What upsampling by copies can turn into a block are
`running_sums`: they are the features of the first two stages. The last, whose blocks are small,
has all of their pixels.

The last channel of every stage is 1: the constant that moves features above 0 for a ReLU, and back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from taehv.model.blocks import MemBlock, TGrow
from taehv.model.start.blocks_of_pixels import Picture
from taehv.model.start.layers import (
    CLIPS_PER_CHUNK,
    as_parameter,
    every,
    fit_rows,
    head,
    last_convolution,
    run_layers,
)
from taehv.model.start.least_squares import (
    Chunks,
    Range,
    about,
    channel_means,
    components,
)
from taehv.model.start.running_sums import running_sums
from taehv.ops.fused import one_step_earlier

CHUNKS = (8, 4, 2)
"""That each stage is fitted to; the more it enlarges, the more positions a clip has."""

FEATURES_PER_LATENT = 3
"""Features of the first stage for each channel of the latents, where it is wide enough; more bring
nothing."""


def solve_decoder(
    decoder: nn.Sequential, latents: Chunks, picture: Picture, block: tuple[int, int]
) -> None:
    """Write the weights.

    Args:
        latents: as the encoder gives them, with those of the corners.
        picture: what they should become.
        block: raw frames, and pixels a side (folded), that a latent becomes.
    """
    clamp, first, relu, *layers = decoder
    assert isinstance(first, nn.Conv2d)
    enlarges = [layer.scale_factor != 1 for layer in layers if isinstance(layer, nn.Upsample)]
    sums = [enlarges[0], enlarges[1], False]
    x = run_layers([clamp], latents)
    carried = min(first.in_channels, first.out_channels // 2)
    count = min(FEATURES_PER_LATENT * first.in_channels, first.out_channels - 1 - carried)
    frames, side = block
    features = _features(picture, frames, side, count, sums[0])
    _carry_latents(first, x, carried, features[0][0].shape[1])
    x = run_layers([first, relu], x)
    memory = layers[0]
    assert isinstance(memory, MemBlock)
    solved = _estimate(memory, x, carried, *features)
    for stage, chunks in enumerate(CHUNKS):
        blocks, (upsample, grow, conv), layers = layers[:3], layers[3:6], layers[6:]
        assert isinstance(grow, TGrow)
        assert isinstance(conv, nn.Conv2d)
        x, picture = run_layers(blocks, head(x, chunks)), picture.head(chunks)
        frames //= grow.stride
        if grow.stride > 1:
            free = grow.conv.in_channels - 1
            features = _features(picture, frames, side, free, sums[stage])
            solved = solve_growth(grow, x, solved, *features)
            x = run_layers([grow], x)
        x = run_layers([upsample], x)
        side //= 1 + enlarges[stage]
        if stage < len(CHUNKS) - 1:
            free = conv.out_channels - 1
            features = _features(picture, frames, side, free, sums[stage + 1])
            solved = _solve_convolution(conv, x, solved, *features, move=layers[0])
        else:
            _solve_last(conv, x, solved, *picture.blocks(frames, side), whole=side == 1)
        x = run_layers([conv], x)
    relu, last = layers
    assert isinstance(last, nn.Conv2d)
    x = run_layers([relu], x)
    solve_colours(last, x, last.in_channels - 1, *picture.blocks(frames, side))


def _features(
    picture: Picture, frames: int, side: int, count: int, sums: bool
) -> tuple[Chunks, int]:
    """What stands for blocks of so many frames and pixels a side, and the first whole one's step.

    sums: whether copies of the features will have to become the block.
    """
    blocks, first = picture.blocks(frames, side // 2 if sums else side)
    return running_sums(blocks, count) if sums else components(blocks, count), first


def _carry_latents(conv: nn.Conv2d, latents: Chunks, carried: int, free: int) -> None:
    """So many latents, moved above 0; behind them channels that are left at 0 for estimates."""
    found = Range.of([chunk[:, :carried] for chunk in latents])
    own = range(carried)
    bias = as_parameter(conv.bias)
    conv.weight[: carried + free] = 0
    conv.weight[own, own, 1, 1] = 1 / found.size
    bias[:carried] = -found.low / found.size
    _make_constant(conv)


def _make_constant(conv: nn.Conv2d) -> None:
    conv.weight[-1] = 0
    as_parameter(conv.bias)[-1] = 1


def _estimate(block: MemBlock, x: Chunks, carried: int, features: Chunks, first: int) -> int:
    """Put estimates of features behind the channels that are carried; how many are solved then.

    Each of the block's convolutions is fitted to the same features, and sees one neighbour more
    than the one before it; the first also sees the step before.
    """
    convolutions = [layer for layer in block.conv if isinstance(layer, nn.Conv2d)]
    last, count = convolutions[-1], features[0].shape[1]
    solved, parts = carried, 2
    y = [torch.cat([part, one_step_earlier(part, None, CLIPS_PER_CHUNK)], 1) for part in x]
    for conv in convolutions:
        begin = carried if conv is last else 0
        rows = slice(begin, begin + count)
        fit_rows(conv.weight[rows], y, features, first, solved, parts)
        found = Range.of([F.conv2d(part, conv.weight[rows], padding=1) for part in y])
        conv.weight[rows] /= found.size[:, None, None, None]
        as_parameter(conv.bias)[rows] = -found.low / found.size
        if conv is not last:
            _make_constant(conv)
            y = run_layers([conv, nn.ReLU()], y)
        solved, parts = count, 1
    return carried + count


def solve_growth(grow: TGrow, x: Chunks, solved: int, features: Chunks, first: int) -> int:
    """Each of the steps that a step grows into gets its own features; how many."""
    width = grow.conv.in_channels
    constant = width - 1
    count = features[0].shape[1]
    targets = [y / Range.of(features).size[:, None, None] for y in features]
    for position, rows in enumerate(torch.split(grow.conv.weight, width)):
        # Steps that grow into a block which lies in the picture as a whole.
        begin = max(0, -(-(first - position) // grow.stride))
        wanted = every(targets, grow.stride, begin * grow.stride + position - first)
        rows[:constant] = 0
        fit_rows(rows[:count], x, wanted, begin, solved)
        rows[constant] = 0
        rows[constant, constant] = 1
    return count


def _solve_convolution(
    conv: nn.Conv2d, x: Chunks, solved: int, features: Chunks, first: int, move: nn.Module
) -> int:
    """Features in a range of 1, which the memory block behind the convolution moves above 0; how
    many."""
    count = features[0].shape[1]
    rows = conv.weight[:count]
    fit_rows(rows, x, features, first, solved)
    found = Range.of([F.conv2d(y, rows, padding=1) for y in x])
    rows /= found.size[:, None, None, None]
    conv.weight[-1] = 0
    bias = as_parameter(last_convolution(move).bias)
    bias[:count] = -found.low / found.size
    bias[conv.out_channels - 1] = 1
    return count


def _solve_last(
    conv: nn.Conv2d, x: Chunks, solved: int, pixels: Chunks, first: int, whole: bool
) -> None:
    """Pixels, and mixtures of all that there is around them, drawn at random: the convolution to
    colours, which is fitted to many of them, finds there what it needs.

    whole: whether the pixels' channels are wanted as they are, where there is room for all.
    """
    free = conv.out_channels - 1
    channels = pixels[0].shape[1]
    targets = about(pixels) if whole and channels <= free else components(pixels, free)
    count = targets[0].shape[1]
    fit_rows(conv.weight[:count], x, targets, first, solved)
    generator = torch.Generator().manual_seed(0)
    mixtures = torch.randn(free - count, solved, 3, 3, generator=generator)
    conv.weight[count:] = 0
    conv.weight[count:free, :solved] = mixtures
    # The layer has no bias: the constant moves its channels above 0, and is handed on.
    constant = conv.in_channels - 1
    found = Range.of([F.conv2d(y, conv.weight[:free], padding=1) for y in x])
    conv.weight[:free] /= found.size[:, None, None, None]
    conv.weight[:free, constant, 1, 1] -= found.low / found.size
    conv.weight[free, constant, 1, 1] = 1


def solve_colours(conv: nn.Conv2d, x: Chunks, solved: int, colours: Chunks, first: int) -> None:
    fit_rows(conv.weight, x, about(colours), first, solved)
    as_parameter(conv.bias)[:] = channel_means(colours)
