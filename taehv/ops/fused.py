"""What the layers of TAEHV compute, with less work than layer by layer.

Frames are folded with time outermost, [T * N, C, H, W] (row t * N + n is clip n at step t), in
channels-last memory. The step before is then the same tensor N rows earlier, so that neither the
past nor a zero frame is ever copied beside the present, and neighbouring linear layers are one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taehv.ops.convolutions import relu_convolution, to_autocast_dtype


def one_step_earlier(x: Tensor, past: Tensor | None, clips: int) -> Tensor:
    """[T * N, C, H, W] shifted by one step; the first is `past`, [N, C, H, W], None for zeros."""
    first = torch.zeros_like(x[:clips]) if past is None else past
    return torch.cat([first, x[:-clips]])


def stack_steps(x: Tensor, clips: int, stride: int) -> Tensor:
    """Each `stride` consecutive steps on channels, the earliest first: [T * N, C, H, W] to
    [T / stride * N, stride * C, H, W], channels last in memory. The stride divides T."""
    if stride == 1:
        return x
    rows, channels, height, width = x.shape
    apart = x.permute(0, 2, 3, 1).reshape(-1, stride, clips, height, width, channels)
    stacked = apart.permute(0, 2, 3, 4, 1, 5).reshape(
        rows // stride, height, width, stride * channels
    )
    return stacked.permute(0, 3, 1, 2)


def convolve_steps_together(conv: nn.Conv2d, x: Tensor, clips: int, stride: int) -> Tensor:
    """ReLU(conv(x)) of each step, with `stride` steps stacked on channels as by `stack_steps`.

    A GPU's matrix units take channels by eight: two frames of 3 are done at once in the time of
    one, and the result lies as a pool wants it. The kernel is block diagonal, so that steps do not
    mix, and the channels that are missing to a multiple of 8 weigh nothing.

    Args:
        conv: 3x3 with a bias, which keeps height and width.
        x: [T * N, C, H, W], T a multiple of the stride.
    """
    missing = -(stride * conv.in_channels) % 8
    stacked = F.pad(stack_steps(to_autocast_dtype(x), clips, stride), (0, 0, 0, 0, 0, missing))
    own = torch.eye(stride, dtype=conv.weight.dtype, device=x.device)
    weight = torch.einsum("st,oiyx->sotiyx", own, conv.weight).flatten(0, 1).flatten(1, 2)
    weight = F.pad(weight, (0, 0, 0, 0, 0, missing))
    assert conv.bias is not None
    return relu_convolution(stacked, weight, conv.bias.repeat(stride), padding=1)


def pool_and_convolve(pool: nn.Conv2d, conv: nn.Conv2d, stacked: Tensor) -> Tensor:
    """conv(pool(stacked)) as one convolution: nothing nonlinear stands between, and no bias.

    Args:
        pool: 1x1, stride * C to C channels, the earliest step's first.
        conv: 3x3, C to C' channels; pads with zeros, which a pool of zeros is.
        stacked: [T / stride * N, stride * C, H, W], by `stack_steps`.
    """
    with torch.autocast(stacked.device.type, enabled=False):
        kernel = torch.einsum("omyx,mi->oiyx", conv.weight, pool.weight.flatten(1))
    return F.conv2d(stacked, kernel.to(stacked.dtype), None, conv.stride, conv.padding)


def grow_kernels(grow: nn.Conv2d, conv: nn.Conv2d, stride: int, doubles: bool) -> list[Tensor]:
    """Kernels that upsample (nearest, by 2, where `doubles`), grow and convolve at once.

    Nothing nonlinear stands between the three layers, and no bias, so for each of the steps that a
    step grows into they are one linear layer. Growing and convolving are one 3x3 convolution.
    Upsampling before it makes it a transposed convolution at stride 2, whose 4x4 kernel collects
    the taps that fall on the 2x2 copies of an input pixel: 4 products per output and pair of
    channels instead of 9, and the upsampled steps, the largest tensors of all, never exist.

    Args:
        grow: 1x1, C to stride * C channels, the earliest step's first.
        conv: 3x3, C to C' channels.

    Returns `stride` kernels for `apply_kernel`.
    """
    channels = conv.in_channels
    with torch.autocast(conv.weight.device.type, enabled=False):
        both = torch.einsum(
            "omyx,smi->soiyx", conv.weight, grow.weight.view(stride, channels, channels)
        )
        if doubles:
            # Tap j of the transposed kernel is the sum of taps 2 - j and 3 - j, where they exist.
            turned = F.pad(both.flip(3, 4), (1, 1, 1, 1))
            summed = turned[..., 1:, :] + turned[..., :-1, :]
            both = (summed[..., 1:] + summed[..., :-1]).transpose(1, 2)
    return list(both.unbind(0))


def apply_kernel(x: Tensor, kernel: Tensor, doubles: bool) -> Tensor:
    """One of `grow_kernels` on [T * N, C, H, W]: height and width are doubled or kept."""
    if doubles:
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)
    return F.conv2d(x, kernel, padding=1)


def interleave_steps(steps: Sequence[Tensor], clips: int) -> Tensor:
    """What each step grew into, put in order: s tensors [T_j * N, C, H, W] to one.

    The first steps may be missing from some: those that end the same belong together.
    """
    if len(steps) == 1:
        return steps[0]
    shared = min(len(step) for step in steps)
    # Stacked with channels last, which is how they lie in memory.
    tails = [step[len(step) - shared :].permute(0, 2, 3, 1) for step in steps]
    rows, *image = tails[0].shape
    by_time = [tail.reshape(rows // clips, clips, *image) for tail in tails]
    ordered = torch.stack(by_time, 1).reshape(-1, *image).permute(0, 3, 1, 2)
    heads = [step[: len(step) - shared] for step in steps]
    return torch.cat([*heads, ordered]) if any(map(len, heads)) else ordered
