"""Convolutions together with what follows them: a sum, and the ReLU.

By themselves, a bias, a sum and a ReLU each read and write a whole activation, which on a GPU takes
as long as a convolution of 64 channels; here they are part of the convolution, as far as a library
can. The backward pass needs the result alone: where it is 0, nothing comes through.

Activations are [rows, C, H, W]; under autocast they and the weights are taken in its precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from taehv.ops.convolution_kernels import relu_convolution_kernel, two_steps_kernel


def convolve_relu(conv: nn.Conv2d, x: Tensor, added: Tensor | None = None) -> Tensor:
    """ReLU(conv(x) + added)."""
    return relu_convolution(
        x, conv.weight, conv.bias, added, stride=conv.stride[0], padding=int(conv.padding[0])
    )


def relu_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int,
) -> Tensor:
    """ReLU(convolution + bias + added).

    Args:
        x: [rows, C, H, W].
        weight: [C', C, size, size].
        bias: [C'].
        added: the shape of the result.
    """
    x = to_autocast_dtype(x)
    added = None if added is None else added.to(x.dtype)
    if torch.is_grad_enabled():
        out: Tensor = _ReluConvolution.apply(x, weight, bias, added, stride, padding)  # type: ignore[no-untyped-call]
        return out
    return relu_convolution_kernel(x, *_parameters(x, weight, bias), added, stride, padding)


def relu_convolution_of_two_steps(
    conv: nn.Conv2d, x: Tensor, past: Tensor | None, clips: int
) -> Tensor:
    """ReLU(conv([present, past])) of every step, without putting the two beside each other.

    The convolution of two stacked inputs is the sum of two convolutions. The past's starts N rows
    later, and where there is no past it is not computed.

    Args:
        conv: 2C channels to C', the present's first; height and width are kept.
        x: [T * N, C, H, W], time outermost.
        past: [N, C, H, W], the step before the first; None stands for zeros.
        clips: N.
    """
    x = to_autocast_dtype(x)
    past = None if past is None else past.to(x.dtype)
    padding = conv.kernel_size[0] // 2
    if torch.is_grad_enabled():
        out: Tensor = _TwoSteps.apply(x, conv.weight, conv.bias, past, clips, padding)  # type: ignore[no-untyped-call]
        return out
    return two_steps_kernel(x, *_halves(x, conv.weight, conv.bias), past, clips, padding)


def to_autocast_dtype(x: Tensor) -> Tensor:
    """`x` in autocast's precision, where that is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class _ReluConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        added: Tensor | None,
        stride: int,
        padding: int,
    ) -> Tensor:
        kernel, offset = _parameters(x, weight, bias)
        out = relu_convolution_kernel(x, kernel, offset, added, stride, padding)
        ctx.save_for_backward(x, kernel, out)
        ctx.stride, ctx.padding, ctx.dtype = stride, padding, weight.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, out = ctx.saved_tensors
        g = _relu_backward(gradients[0], out)
        grad_x, grad_weight, grad_bias = _conv_backward(
            g, x, kernel, ctx.stride, ctx.padding, ctx.needs_input_grad[:3]
        )
        grad_added = g if ctx.needs_input_grad[3] else None
        grad_weight, grad_bias = _to(grad_weight, ctx.dtype), _to(grad_bias, ctx.dtype)
        return grad_x, grad_weight, grad_bias, grad_added, None, None


class _TwoSteps(torch.autograd.Function):
    """Autograd's own backward pass of the sum would copy each gradient before it adds to it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        past: Tensor | None,
        clips: int,
        padding: int,
    ) -> Tensor:
        present, earlier, offset = _halves(x, weight, bias)
        out = two_steps_kernel(x, present, earlier, offset, past, clips, padding)
        ctx.save_for_backward(x, present, earlier, past, out)
        ctx.clips, ctx.padding, ctx.dtype = clips, padding, weight.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, present, earlier, past, out = ctx.saved_tensors
        clips, padding = ctx.clips, ctx.padding
        g = _relu_backward(gradients[0], out)
        both, with_bias = (True, True, False), (True, True, ctx.needs_input_grad[2])
        grad_x, grad_present, grad_bias = _conv_backward(g, x, present, 1, padding, with_bias)
        grad_earlier, grad_past = torch.zeros_like(grad_present), None
        if len(x) > clips:
            later, grad_earlier, _ = _conv_backward(
                g[clips:], x[:-clips], earlier, 1, padding, both
            )
            grad_x[:-clips] += later
        if past is not None:
            grad_past, from_past, _ = _conv_backward(g[:clips], past, earlier, 1, padding, both)
            grad_earlier = grad_earlier + from_past
        grad_weight = torch.cat([grad_present, grad_earlier], 1).to(ctx.dtype)
        return grad_x, grad_weight, _to(grad_bias, ctx.dtype), grad_past, None, None


def _parameters(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as a convolution of `x` takes them, in one copy each at most."""
    layout = torch.channels_last if x.is_cuda else torch.preserve_format
    return weight.to(x.dtype, memory_format=layout), _to(bias, x.dtype)


def _halves(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The weight for the present, that for the step before, and the bias."""
    present, earlier = weight.tensor_split(2, 1)
    return _parameters(x, present, None)[0], *_parameters(x, earlier, bias)


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _relu_backward(g: Tensor, out: Tensor) -> Tensor:
    masked: Tensor = torch.ops.aten.threshold_backward(g, out, 0)
    return masked


def _conv_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Any, Any, Tensor | None]:
    """Gradients with respect to a convolution's input, weight and bias, as far as wanted."""
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        g,
        x,
        weight,
        [len(weight)] if wanted[2] else None,
        [stride, stride],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        1,
        wanted,
    )
    return grad_x, grad_weight, grad_bias
