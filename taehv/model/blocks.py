"""The layers of TAEHV and the two stacks made of them.

Shapes: N clips, T time steps, C channels, H height, W width. Time and clips are folded into the
first dimension, time outermost: [T * N, C, H, W]. Attribute names and positions in the stacks are
part of the public checkpoint keys; how neighbouring layers are computed at once is in `fused.py`.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from taehv.model.variants import Architecture
from taehv.ops.convolutions import convolve_relu, relu_convolution_of_two_steps
from taehv.ops.fused import one_step_earlier

IMAGE_CHANNELS = 3


def conv3x3(n_in: int, n_out: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """3x3 convolution that keeps height and width (at stride 1)."""
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=bias)


class Clamp(nn.Module):
    """Bounds latents softly to (-3, 3); the slope is 1 at 0 and 0.9 at 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemoryLayer(nn.Module):
    """A layer that also sees its own input of one time step earlier; zeros before the first."""

    def forward(self, x: Tensor, past: Tensor | None, clips: int) -> Tensor:
        """Map [T * N, C, H, W] to [T * N, C_out, H, W].

        Args:
            x: T steps.
            past: [N, C, H, W], the step before the first; None stands for zeros.
            clips: N.
        """
        raise NotImplementedError


class MemBlock(MemoryLayer):
    """Residual block over the present and the past: ReLU(conv([x, past]) + skip(x))."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv3x3(2 * n_in, n_out),
            nn.ReLU(inplace=True),
            conv3x3(n_out, n_out),
            nn.ReLU(inplace=True),
            conv3x3(n_out, n_out),
        )
        same = n_in == n_out
        self.skip = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x: Tensor, past: Tensor | None, clips: int) -> Tensor:
        first, _, second, _, third = self.conv
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        assert isinstance(third, nn.Conv2d)
        y = relu_convolution_of_two_steps(first, x, past, clips)
        return convolve_relu(third, convolve_relu(second, y), self.skip(x))


class SuperMemBlock(MemoryLayer):
    """Residual block of the super decoder: a 7x7 depthwise convolution, then a wide 1x1 pair."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 7, padding=3, groups=2 * width, bias=False),
            nn.Conv2d(2 * width, 4 * width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )

    def forward(self, x: Tensor, past: Tensor | None, clips: int) -> Tensor:
        mixed: Tensor = self.conv(torch.cat([x, one_step_earlier(x, past, clips)], 1))
        return mixed.add_(x)


class TPool(nn.Module):
    """Merges `stride` consecutive frames into one; `timesteps` runs it with the convolution that
    follows."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)


class TGrow(nn.Module):
    """Grows one frame into `stride` consecutive ones; `timesteps` puts them in order."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def kernels(self) -> list[Tensor]:
        """For each frame that one grows into, the earliest first, its 1x1 kernel."""
        return list(self.conv.weight.chunk(self.stride))


def build_encoder(a: Architecture) -> nn.Sequential:
    """Frames, pixel-unshuffled by patch_size, to latents at 1/8 of that height and width."""
    width = a.encoder_width

    def layers() -> Iterator[nn.Module]:
        yield conv3x3(IMAGE_CHANNELS * a.patch_size**2, width)
        yield nn.ReLU(inplace=True)
        for halves_time in a.encoder_time_downscale:
            yield TPool(width, 2 if halves_time else 1)
            yield conv3x3(width, width, stride=2, bias=False)
            yield from (MemBlock(width, width) for _ in range(3))
        yield conv3x3(width, a.latent_channels)

    return nn.Sequential(*layers())


def build_decoder(a: Architecture) -> nn.Sequential:
    """Latents to frames that are still to be pixel-shuffled by patch_size."""
    return nn.Sequential(*(_super_decoder_layers(a) if a.super_decoder else _decoder_layers(a)))


def _decoder_layers(a: Architecture) -> Iterator[nn.Module]:
    yield Clamp()
    yield conv3x3(a.latent_channels, a.decoder_widths[0])
    yield nn.ReLU(inplace=True)
    stages = zip(
        pairwise(a.decoder_widths), a.decoder_time_upscale, a.decoder_space_upscale, strict=True
    )
    for (width, next_width), doubles_time, doubles_space in stages:
        yield from (MemBlock(width, width) for _ in range(3))
        yield nn.Upsample(scale_factor=2 if doubles_space else 1, mode="nearest")
        yield TGrow(width, 2 if doubles_time else 1)
        yield conv3x3(width, next_width, bias=False)
    yield nn.ReLU(inplace=True)
    yield conv3x3(a.decoder_widths[-1], IMAGE_CHANNELS * a.patch_size**2)


def _super_decoder_layers(a: Architecture) -> Iterator[nn.Module]:
    yield nn.Conv2d(a.latent_channels, a.decoder_widths[0], 1, bias=False)
    stages = zip(pairwise(a.decoder_widths), a.decoder_time_upscale, strict=True)
    for (width, next_width), doubles_time in stages:
        yield from (SuperMemBlock(width) for _ in range(3))
        yield conv3x3(width, 4 * next_width)
        yield nn.ReLU(inplace=True)
        yield nn.PixelShuffle(2)
        yield TGrow(next_width, 2 if doubles_time else 1)
    yield conv3x3(a.decoder_widths[-1], IMAGE_CHANNELS * a.patch_size**2)
