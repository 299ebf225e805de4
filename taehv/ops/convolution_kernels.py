"""A convolution, the sum and the ReLU that follow it: by cuDNN in one pass over memory on a GPU,
elsewhere in place.

Gradients are computed in `convolutions`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ONE = [1, 1]


def relu_convolution_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    stride: int,
    padding: int,
) -> Tensor:
    """ReLU(convolution + bias + added), all in the precision of `x`."""
    if _has_cudnn(x, weight):
        geometry = ([stride, stride], [padding, padding], _ONE, 1)
        if added is None:
            # cudnn_convolution_relu would add what lies in fresh memory, times 0: a NaN there, as
            # white pixels are one in bf16, might stay one.
            added = _empty_output(x, weight, stride, padding).zero_()
        return torch.cudnn_convolution_add_relu(x, weight, added, 1.0, bias, *geometry)
    out = F.conv2d(x, weight, bias, stride, padding)
    if added is not None:
        out.add_(added)
    return torch.relu_(out)


def two_steps_kernel(
    x: Tensor,
    present: Tensor,
    earlier: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    clips: int,
    padding: int,
) -> Tensor:
    """ReLU(conv([present, past])) of every step; see `convolutions.relu_convolution_of_two_steps`.

    Args:
        x: [T * N, C, H, W].
        present, earlier: the halves of the weight, each [C', C, size, size].
        bias: [C'].
        past: [N, C, H, W]; None stands for zeros.
        clips: N.
        padding: keeps height and width.
    """
    if _has_cudnn(x, present):
        of_past = _empty_output(x, present, 1, padding)
        if past is None:
            of_past[:clips].zero_()
        else:
            _convolve_into(of_past[:clips], past, earlier, padding)
        if len(x) > clips:
            _convolve_into(of_past[clips:], x[:-clips], earlier, padding)
        return relu_convolution_kernel(x, present, bias, of_past, 1, padding)
    out = F.conv2d(x, present, bias, padding=padding)
    if past is not None:
        out[:clips].add_(F.conv2d(past, earlier, padding=padding))
    if len(x) > clips:
        out[clips:].add_(F.conv2d(x[:-clips], earlier, padding=padding))
    return torch.relu_(out)


def _empty_output(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Uninitialised memory for a convolution's result, channels last."""
    height, width = (
        (size + 2 * padding - kernel) // stride + 1
        for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)
    )
    shape = (len(x), len(weight), height, width)
    layout = torch.channels_last
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _convolve_into(out: Tensor, x: Tensor, weight: Tensor, padding: int) -> None:
    """Write the convolution into `out`, by cuDNN."""
    cudnn = torch.backends.cudnn
    torch.ops.aten.cudnn_convolution.out(
        x,
        weight,
        [padding, padding],
        _ONE,
        _ONE,
        1,
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.allow_tf32,
        out=out,
    )


def _has_cudnn(x: Tensor, weight: Tensor) -> bool:
    """Whether cuDNN's fused convolutions take this; otherwise PyTorch's own are used."""
    # A compiler fuses by itself, and does not know these operators.
    if not x.is_cuda or torch.compiler.is_compiling():
        return False
    cudnn = torch.backends.cudnn
    dtypes = [torch.float16, torch.float32]
    if torch.cuda.get_device_capability(x.device) >= (8, 0):
        dtypes.append(torch.bfloat16)
    pixels = x.numel() // x.shape[1]
    return (
        torch.version.hip is None
        and cudnn.enabled
        # They have no choice of algorithms.
        and not cudnn.deterministic
        and x.dtype in dtypes
        and pixels * max(x.shape[1], len(weight)) < 2**31
    )
