"""A convolution, the sum and the ReLU that follow it, in one pass over memory where a library can:
cuDNN on a GPU, oneDNN on a CPU. Elsewhere the sum and the ReLU are done in place.

Nothing here knows of gradients; `convolutions` does.
"""

from __future__ import annotations

from typing import Any

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
    *,
    keeps_nan: bool,
) -> Tensor:
    """ReLU(convolution + bias + added), all in the precision of `x`.

    With `keeps_nan` a NaN comes out as one, for training to notice; oneDNN's ReLU makes 0 of it.
    """
    if _has_cudnn(x, weight):
        geometry = ([stride, stride], [padding, padding], _ONE, 1)
        if added is None:
            # cudnn_convolution_relu would add what lies in fresh memory, times 0: a NaN there, as
            # white pixels are one in bf16, might stay one.
            added = _room(x, weight, stride, padding).zero_()
        return torch.cudnn_convolution_add_relu(x, weight, added, 1.0, bias, *geometry)
    fuses_all = added is None and not keeps_nan and _has_onednn(x)
    if fuses_all or (added is not None and _has_onednn(x, added)):
        fused: Any = torch.ops.mkldnn._convolution_pointwise
        both = ([padding, padding], [stride, stride], _ONE, 1)
        cut = None if keeps_nan else "relu"
        if added is None:
            out: Tensor = fused(x, weight, bias, *both, cut, [], "")
        else:
            out = fused.binary(x, added, weight, bias, *both, "add", 1.0, cut, [], "")
        return torch.relu_(out) if keeps_nan else out
    out = F.conv2d(x, weight, bias, stride, padding)
    return torch.relu_(out if added is None else out.add_(added))


def two_steps_kernel(
    x: Tensor,
    present: Tensor,
    earlier: Tensor,
    bias: Tensor | None,
    past: Tensor | None,
    clips: int,
    padding: int,
    *,
    keeps_nan: bool,
) -> Tensor:
    """ReLU(conv([present, past])) of every step; see `convolutions.relu_convolution_of_two_steps`.

    Args:
        x: [T * N, C, H, W].
        present, earlier: the halves of the weight, each [C', C, size, size].
        bias: [C'].
        past: [N, C, H, W]; None stands for zeros.
        clips: N.
        padding: keeps height and width.
        keeps_nan: as above.
    """
    if _has_cudnn(x, present):
        of_past = _room(x, present, 1, padding)
        if past is None:
            of_past[:clips].zero_()
        else:
            _convolve_into(of_past[:clips], past, earlier, padding)
        if len(x) > clips:
            _convolve_into(of_past[clips:], x[:-clips], earlier, padding)
        return relu_convolution_kernel(x, present, bias, of_past, 1, padding, keeps_nan=keeps_nan)
    out = F.conv2d(x, present, bias, padding=padding)
    if past is None:
        torch.relu_(out[:clips])
    else:
        _add_convolution_and_relu(out[:clips], past, earlier, padding, keeps_nan)
    if len(x) > clips:
        _add_convolution_and_relu(out[clips:], x[:-clips], earlier, padding, keeps_nan)
    return out


def _add_convolution_and_relu(
    out: Tensor, x: Tensor, weight: Tensor, padding: int, keeps_nan: bool
) -> None:
    """In place, `out` becomes ReLU(out + conv(x))."""
    if not _has_onednn(x, out):
        torch.relu_(out.add_(F.conv2d(x, weight, padding=padding)))
        return
    both = ([padding, padding], _ONE, _ONE, 1)
    cut = None if keeps_nan else "relu"
    fused: Any = torch.ops.mkldnn._convolution_pointwise_
    fused.binary(out, x, weight, None, *both, "add", 1.0, cut, [], "")
    if keeps_nan:
        torch.relu_(out)


def _room(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Memory for a convolution's result, channels last, as it comes."""
    height, width = (
        (size + 2 * padding - kernel) // stride + 1
        for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)
    )
    shape = (len(x), len(weight), height, width)
    layout = torch.channels_last
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _convolve_into(out: Tensor, x: Tensor, weight: Tensor, padding: int) -> None:
    """By cuDNN, to where the result is wanted."""
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
    """Whether cuDNN's fused convolutions take this; what they refuse goes to PyTorch's own."""
    # A compiler fuses by itself, and does not know them.
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


def _has_onednn(*tensors: Tensor) -> bool:
    """Whether oneDNN's fused convolutions take these; what they refuse goes to PyTorch's own."""
    # Neither a compiler nor a tensor that only pretends to be one knows them.
    if torch.compiler.is_compiling() or any(type(tensor) is not Tensor for tensor in tensors):
        return False
    if tensors[0].device.type != "cpu":
        return False
    onednn: Any = torch.backends.mkldnn
    if not (onednn.is_available() and onednn.enabled):
        return False
    if tensors[0].dtype == torch.bfloat16:
        taken = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    else:
        taken = tensors[0].dtype == torch.float32
    return taken and all(map(_has_channels_last, tensors))


def _has_channels_last(x: Tensor) -> bool:
    """Stricter than `is_contiguous`, which where sizes are 1 says so of more than oneDNN takes."""
    _, channels, _, width = x.shape
    return channels > 1 and x.stride()[1:] == (1, width * channels, channels)
