"""What the layers of TAEHV compute, with less work than layer by layer.

Frames are folded with time outermost, [T * N, C, H, W] (row t * N + n is clip n at step t), in
channels-last memory. The step before is then the same tensor N rows earlier, so that neither the
past nor a zero frame is ever copied beside the present, and neighbouring linear layers are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def one_step_earlier(x: Tensor, past: Tensor | None, clips: int) -> Tensor:
    """[T * N, C, H, W] shifted by one step; the first is `past`, [N, C, H, W], None for zeros."""
    first = torch.zeros_like(x[:clips]) if past is None else past
    return torch.cat([first, x[:-clips]])


def convolve_two_steps(conv: nn.Conv2d, x: Tensor, past: Tensor | None, clips: int) -> Tensor:
    """conv([present, past]) of every step, without putting the two beside each other.

    The convolution of two stacked inputs is the sum of two convolutions. The past's starts N rows
    later, and where there is no past it is not computed.

    Args:
        conv: 2C channels to C', the present's first; height and width are kept.
        x: [T * N, C, H, W].
        past: [N, C, H, W], the step before the first; None stands for zeros.
        clips: N.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    weight = conv.weight.to(x.dtype)
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    padding = conv.kernel_size[0] // 2
    out: Tensor = _TwoSteps.apply(x, weight, bias, clips, padding)  # type: ignore[no-untyped-call]
    if past is not None:
        earlier = weight[:, x.shape[1] :]
        out[:clips] += F.conv2d(past, earlier, padding=padding)
    return out


class _TwoSteps(torch.autograd.Function):
    """`convolve_two_steps` with zeros before the first step.

    Autograd's own backward pass of the sum would copy each gradient before it adds to it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, clips: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.clips, ctx.padding, ctx.biased = clips, padding, bias is not None
        present, earlier = weight.tensor_split(2, 1)
        out = F.conv2d(x, present, bias, padding=padding)
        if len(x) > clips:
            out[clips:] += F.conv2d(x[:-clips], earlier, padding=padding)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, weight = ctx.saved_tensors
        clips = ctx.clips
        present, earlier = weight.tensor_split(2, 1)
        to_x, to_present, to_bias = _backward(g, x, present, ctx.padding, ctx.biased)
        to_earlier = torch.zeros_like(earlier)
        if len(x) > clips:
            later, to_earlier, _ = _backward(g[clips:], x[:-clips], earlier, ctx.padding, False)
            to_x[:-clips] += later
        return to_x, torch.cat([to_present, to_earlier], 1), to_bias, None, None


def _backward(
    g: Tensor, x: Tensor, weight: Tensor, padding: int, biased: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients with respect to input, weight and bias of a convolution at stride 1."""
    to_x, to_weight, to_bias = torch.ops.aten.convolution_backward(
        g,
        x,
        weight,
        [len(weight)] if biased else None,
        [1, 1],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, biased],
    )
    return to_x, to_weight, to_bias


def merge_steps(conv: nn.Conv2d, x: Tensor, clips: int, stride: int) -> Tensor:
    """A 1x1 convolution over each `stride` consecutive steps, stacked on channels.

    That is a convolution over time, `stride` steps long and `stride` steps apart, and nothing need
    be stacked. In lower precision it is stacked all the same: oneDNN's bf16 kernels for that
    convolution's backward pass write beyond their memory (seen with torch 2.13, 32 channels).

    Args:
        conv: stride * C channels to C', the earliest step's first, without bias.
        x: [T * N, C, H, W], T a multiple of the stride.
    """
    if stride == 1:
        merged: Tensor = conv(x)
        return merged
    rows, channels, height, width = x.shape
    if torch.is_autocast_enabled(x.device.type) or x.dtype in (torch.bfloat16, torch.float16):
        apart = x.permute(0, 2, 3, 1).reshape(-1, stride, clips, height, width, channels)
        stacked = apart.permute(0, 2, 3, 4, 1, 5).flatten(4).flatten(0, 1)
        return F.conv2d(stacked.permute(0, 3, 1, 2), conv.weight)
    # Clips stand side by side along H. The kernel is 1 high and wide, so they do not meet.
    video = x.permute(0, 2, 3, 1).reshape(1, rows // clips, clips * height, width, channels)
    kernel = conv.weight.view(-1, stride, channels).transpose(1, 2)[..., None, None]
    merged = F.conv3d(video.permute(0, 4, 1, 2, 3), kernel, stride=(stride, 1, 1))
    rows_last = merged.permute(0, 2, 3, 4, 1).reshape(rows // stride, height, width, -1)
    return rows_last.permute(0, 3, 1, 2)


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

    Returns:
        `stride` kernels for `apply_kernel`.
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
