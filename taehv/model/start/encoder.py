"""An encoder that is a linear transform of blocks, through its ReLUs.

Its first channels carry features of the picture: at each stage the principal components of what a
position stands for, as many as there are channels. What is below 0 would not come through a ReLU,
so each feature is moved and scaled into [0, 1]; the first memory block's last bias moves it. The
range holds what any mean colour gives, too: a road sign should not lose its colour because the few
clips that the start is solved from have none.
Strided convolutions take the four pixels of a 2x2 block, and so never touch the padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taehv.model.blocks import TPool
from taehv.model.start.layers import (
    CLIPS_PER_CHUNK,
    as_parameter,
    fit_rows,
    head,
    last_convolution,
    run_layers,
)
from taehv.model.start.least_squares import (
    Chunks,
    Range,
    principal_components,
)
from taehv.ops.fused import stack_steps

LATENT_STD = 0.25
"""Of every channel of the latents, where no teacher gives their scale: at 0.25 the decoder's Clamp
costs 0.1 dB, at 1 3 dB. Less where a colour would make them larger than `LARGEST`."""

LARGEST = 3.0
"""Of a latent of any colour: the Clamp takes a quarter from it. With less the channel that carries
the colour is so small that gradients grow (twice as large at 1.5, and 0.1 dB lost by step 40)."""

FIRST_CHUNKS = (2, 4)
"""Chunks that the first stages are fitted to; there every clip has many positions."""


@dataclass(frozen=True, eq=False)
class _Features:
    """What the first channels of an activation carry."""

    units: Tensor
    """[C]: a feature's change in its own unit, colour values, per 1 of activation."""

    @property
    def count(self) -> int:
        return len(self.units)


def solve_encoder(encoder: nn.Sequential, frames: Chunks, latents: Chunks | None) -> Chunks:
    """Write the weights, and return what the encoder makes of the frames.

    Args:
        frames: folded by the patch size, time outermost, whole latents; with the corners.
        latents: what it should make of the others; None: principal components, of one spread.
    """
    layers = list(encoder)
    first = layers[0]
    assert isinstance(first, nn.Conv2d)
    features = _carry_pixels(first, frames)
    x, pending = frames, layers[:2]
    stages = [k for k, layer in enumerate(layers) if isinstance(layer, TPool)]
    for number, k in enumerate(stages):
        pool, conv, *blocks = layers[k : k + 5]
        assert isinstance(pool, TPool)
        assert isinstance(conv, nn.Conv2d)
        few = head(x, FIRST_CHUNKS[number]) if number < len(FIRST_CHUNKS) else x
        stacked = [stack_steps(y, CLIPS_PER_CHUNK, pool.stride) for y in run_layers(pending, few)]
        features = _solve_stage(pool, conv, blocks[0], stacked, features)
        x = run_layers([*pending, pool, conv, *blocks], x)
        pending = []
    last = layers[-1]
    assert isinstance(last, nn.Conv2d)
    if latents is None:
        _solve_components(last, x, features)
    else:
        _solve_latents(last, x, latents)
    return run_layers([last], x)


def _carry_pixels(conv: nn.Conv2d, frames: Chunks) -> _Features:
    """Colours are in [0, 1] as they are."""
    colours = frames[0].shape[1]
    count = min(colours, conv.out_channels)
    bias = as_parameter(conv.bias)
    if count == colours:
        basis, scale = torch.eye(colours), torch.ones(colours)
        bias[:count] = 0
    else:
        basis = principal_components(frames[:-1], count)
        found = Range.of([F.conv2d(chunk, basis[..., None, None]) for chunk in frames])
        scale = 1 / found.size
        bias[:count] = -found.low * scale
    conv.weight[:count] = 0
    conv.weight[:count, :, 1, 1] = basis * scale[:, None]
    return _Features(1 / scale)


def _solve_stage(
    pool: TPool, conv: nn.Conv2d, block: nn.Module, stacked: Chunks, features: _Features
) -> _Features:
    """Two frames become one, and a 2x2 block a pixel.

    Args:
        stacked: [rows, stride * width, H, W], the frames that become one; with the corners.
    """
    width = conv.out_channels
    carried = torch.cat([torch.arange(features.count) + k * width for k in range(pool.stride)])
    units = features.units.repeat(pool.stride)
    if len(carried) <= width:
        kernel = torch.eye(len(carried))
    else:
        in_units = [chunk[:, carried] * units[:, None, None] for chunk in stacked]
        basis = principal_components(in_units[:-1], width)
        units = Range.of([F.conv2d(y, basis[..., None, None]) for y in in_units]).size
        kernel = basis * features.units.repeat(pool.stride) / units[:, None]
    pooled = len(kernel)
    pool.conv.weight[:pooled] = 0
    pool.conv.weight[:pooled, carried, 0, 0] = kernel
    # One channel is left for the constant that the last convolution needs.
    count = min(width - 1, 4 * pooled)
    blocks = [
        F.pixel_unshuffle(pool.conv(chunk)[:, :pooled] * units[:, None, None], 2)
        for chunk in stacked
    ]
    basis = principal_components(blocks[:-1], count)
    found = Range.of([F.conv2d(y, basis[..., None, None]) for y in blocks])
    taps = (basis / found.size[:, None]).reshape(count, pooled, 2, 2) * units[:, None, None]
    conv.weight[:count] = 0
    conv.weight[:count, :pooled, 1:, 1:] = taps
    conv.weight[width - 1] = 0
    bias = as_parameter(last_convolution(block).bias)
    bias[:count] = -found.low / found.size
    bias[width - 1] = 1
    return _Features(found.size)


def _solve_components(conv: nn.Conv2d, x: Chunks, features: _Features) -> None:
    """Latents that are the features' principal components, each of the same spread unless that
    makes it too large for some colour."""
    count = min(conv.out_channels, features.count)
    in_units = [chunk[:, : features.count] * features.units[:, None, None] for chunk in x]
    basis = principal_components(in_units[:-1], count)
    *found, corners = (F.conv2d(y, basis[..., None, None]) for y in in_units)
    std, mean = torch.std_mean(torch.cat(found), (0, 2, 3))
    largest = (corners - mean[:, None, None]).abs().amax((0, 2, 3))
    scale = torch.minimum(LATENT_STD / std.clamp_min(1e-6), LARGEST / largest.clamp_min(1e-6))
    bias = as_parameter(conv.bias)
    # Where a latent has more channels than the encoder, the others carry nothing yet.
    conv.weight[:] = 0
    conv.weight[:count, : features.count, 1, 1] = basis * features.units * scale[:, None]
    bias[:] = 0
    bias[:count] = -mean * scale


def _solve_latents(conv: nn.Conv2d, x: Chunks, latents: Chunks) -> None:
    """Latents that are nearest to the given ones."""
    fit_rows(conv.weight, x, latents, first=0, solved=conv.in_channels - 1)
    as_parameter(conv.bias)[:] = 0
