"""Initial weights without a checkpoint: a network that already reconstructs a faint picture.

Most channels are drawn at random (He). The first few carry the picture itself through every layer:
averaged over blocks of 8x8 by the encoder, copied by the decoder. At step 0 the output is thus a
faint 8x thumbnail on grey, and training adds contrast and detail instead of spending its first
hundreds of steps on finding the mean colour.

What makes that path exact:
- Frames are never negative, so the ReLUs let the picture through. Latents are centred on 0 and
  small, where the Clamp is straight; the first decoder convolution moves them back above 0.
- A memory block's last convolution is zero, so the block returns its input. The earlier ones are
  small, since the first gradient of the last one is proportional to their output.
- TPool takes the first of its frames for the picture (after the trim, a latent's last raw frame
  shows the first of the frames it was made of) and the mean for the rest. TGrow copies.
- Random channels look at frames - 0.5, for otherwise they all see mostly the brightness, and have
  little weight in the last convolution at first.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from taehv.model.blocks import IMAGE_CHANNELS, MemoryLayer, TGrow, TPool

if TYPE_CHECKING:
    from taehv.model.network import TAEHV

# A frame in [0, 1] becomes a latent in [-1, 1], which the Clamp changes by 4 % at most.
_LATENT_SCALE = 2.0
_MEMORY_GAIN = 0.5
_OUTPUT_GAIN = 0.01
# Contrast of the output at step 0. At full contrast the layers before the last would have little to
# gain at first; with this little all of them move, and it is full again within 50 steps.
_OUTPUT_CONTRAST = 0.1


@torch.no_grad()
def initialise_near_identity(model: "TAEHV", seed: int = 0) -> None:
    """Initialise a TAEHV in place; the same seed gives the same weights on every device."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _draw(module, generator)
    for module in model.modules():
        if isinstance(module, MemoryLayer):
            _make_identity(module)
        elif isinstance(module, TPool):
            eye = torch.eye(module.conv.out_channels).repeat(1, module.stride)
            module.conv.weight.copy_(eye[..., None, None] / module.stride)
        elif isinstance(module, TGrow):
            eye = torch.eye(module.conv.in_channels).repeat(module.stride, 1)
            module.conv.weight.copy_(eye[..., None, None])
    a = model.architecture
    # Where a stack is too narrow for every image channel, the first ones are carried.
    carried = min(
        IMAGE_CHANNELS * a.patch_size**2, a.latent_channels, a.encoder_width, *a.decoder_widths
    )
    _carry_down(model.encoder, carried)
    _carry_up(model.decoder, carried)


@torch.no_grad()
def initialise_as_pytorch(model: "TAEHV", seed: int = 0) -> None:
    """PyTorch's own initialisation in place, with a grey picture in the last bias."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    last = model.decoder[-1]
    assert isinstance(last, nn.Conv2d)
    _bias(last).fill_(0.5)


def _draw(conv: nn.Conv2d, generator: torch.Generator) -> None:
    """He's normal initialisation: the variance is kept through a ReLU."""
    spread = math.sqrt(2 / conv.weight[0].numel())
    conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * spread)
    if conv.bias is not None:
        conv.bias.zero_()


def _make_identity(block: MemoryLayer) -> None:
    """Make a memory block return its input: its last convolution is zero, the others small."""
    *earlier, last = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    for conv in earlier:
        conv.weight.mul_(_MEMORY_GAIN)
    last.weight.zero_()


def _carry_down(encoder: nn.Sequential, carried: int) -> None:
    channels = torch.arange(carried)
    first, *halvings, last = _convolutions(encoder)
    _bias(first).copy_(-0.5 * first.weight.sum((1, 2, 3)))
    _carry(first, carried, _centre(first))
    for conv in halvings:
        # At stride 2 these four taps are the four pixels of a 2x2 block.
        taps = torch.zeros(3, 3)
        taps[1:, 1:] = 1 / 4
        _carry(conv, carried, taps)
    _carry(last, carried, _LATENT_SCALE * _centre(last), -_LATENT_SCALE / 2)
    for layer in encoder:
        if isinstance(layer, TPool):
            layer.conv.weight[:carried] = 0
            layer.conv.weight[channels, channels] = 1


def _carry_up(decoder: nn.Sequential, carried: int) -> None:
    first, *stages, last = _convolutions(decoder)
    # Latents come back above 0 before the first ReLU, in the first convolution that has a bias.
    scaled = first if first.bias is not None else stages[0]
    for conv in (first, *stages):
        gain, bias = (1 / _LATENT_SCALE, 0.5) if conv is scaled else (1.0, 0.0)
        _carry(conv, carried, gain * _centre(conv), bias, copies=_copies(decoder, conv))
    last.weight.mul_(_OUTPUT_GAIN)
    last.weight[:, :carried] = 0
    _bias(last).fill_(0.5)
    channels = torch.arange(carried)
    last.weight[channels, channels] = _OUTPUT_CONTRAST * _centre(last).to(last.weight)
    _bias(last)[:carried] = 0.5 * (1 - _OUTPUT_CONTRAST)


def _convolutions(layers: nn.Sequential) -> list[nn.Conv2d]:
    """The stack's own convolutions, without those inside its blocks."""
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)]


def _copies(layers: nn.Sequential, conv: nn.Conv2d) -> int:
    """Output channels per channel: 4 where a PixelShuffle spreads them over 2x2 pixels, or 1."""
    following = list(layers)[list(layers).index(conv) + 1 :][:2]
    return 4 if any(isinstance(layer, nn.PixelShuffle) for layer in following) else 1


def _carry(conv: nn.Conv2d, carried: int, taps: Tensor, bias: float = 0.0, copies: int = 1) -> None:
    """Make output channel i of `conv` the input channel i filtered by `taps`, for i < carried."""
    rows = torch.arange(carried * copies)
    conv.weight[rows] = 0
    conv.weight[rows, rows // copies] = taps.to(conv.weight)
    if conv.bias is not None:
        conv.bias[rows] = bias


def _centre(conv: nn.Conv2d) -> Tensor:
    """The kernel that copies a pixel."""
    height, width = conv.kernel_size
    taps = torch.zeros(height, width)
    taps[height // 2, width // 2] = 1
    return taps


def _bias(conv: nn.Conv2d) -> Tensor:
    if conv.bias is None:
        raise ValueError("the first and the last convolution of a stack have a bias")
    return conv.bias
