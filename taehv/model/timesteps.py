"""How a stack of layers runs over time: all steps at once, or some now and the rest later.

Both give the same numbers. All steps at once is fast, and its memory grows with T. `TimeStepper`
takes any number of steps at a time, one of a live stream or a chunk of a video, and keeps one past
activation per memory layer in between, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taehv.model.blocks import MemoryLayer, TGrow, TPool
from taehv.ops.convolutions import convolve_relu
from taehv.ops.fused import (
    apply_kernel,
    convolve_steps_together,
    grow_kernels,
    interleave_steps,
    pool_and_convolve,
    stack_steps,
)

Layers = Sequence[nn.Module]


Memory = dict[nn.Module, Tensor]
"""What a stack remembers from one call to the next: of a memory layer its input of the step before,
of a pool the steps that wait until it is full."""


def _exchange_past(memory: Memory, layer: MemoryLayer, x: Tensor, clips: int) -> Tensor | None:
    """The step before x, [N, C, H, W], None at the start; x's last takes its place."""
    past = memory.get(layer)
    # A view of a chunk would keep the whole chunk.
    memory[layer] = x if len(x) == clips else x[-clips:].clone()
    return past


def _fill(memory: Memory, pool: TPool, x: Tensor, clips: int) -> Tensor:
    """The steps that wait and x, as far as they fill the pool; the rest waits."""
    if pool in memory:
        x = torch.cat([memory.pop(pool), x])
    whole = len(x) // (pool.stride * clips) * pool.stride * clips
    if whole < len(x):
        memory[pool] = x[whole:]
    return x[:whole]


def run_parallel(
    layers: nn.Sequential, x: Tensor, recompute: bool = False, trim: int = 0
) -> Tensor:
    """Run all time steps at once: [N, T, C, H, W] to [N, T_out, C_out, H_out, W_out].

    Args:
        layers: the stack.
        x: T must be a multiple of the product of the stack's TPool strides.
        recompute: leave the backward pass no more than what passes between segments; it then runs
            each segment again.
        trim: leading steps of the result to leave out; they are computed only as far as others
            depend on them.
    """
    clips = len(x)
    x = _fold(x)
    segments = _segments(layers)
    for segment in segments:
        dropped = trim if segment is segments[-1] else 0
        if recompute:
            # No layer draws random numbers, so their generator need not be put back.
            x = checkpoint(
                _run, segment, x, clips, dropped, use_reentrant=False, preserve_rng_state=False
            )
        else:
            x = _run(segment, x, clips, dropped)
    return _unfold(x, clips)


class TimeStepper:
    """Runs a stack some time steps at a time and keeps a `Memory` in between, whose size does not
    depend on how many frames have gone through."""

    def __init__(self, layers: nn.Sequential) -> None:
        self._layers = list(layers)
        self._segments = _segments(layers)
        self._memory: Memory = {}

    @property
    def memory(self) -> Memory:
        """All that later steps depend on, in the order of the layers."""
        return {layer: self._memory[layer] for layer in self._layers if layer in self._memory}

    @memory.setter
    def memory(self, memory: Memory) -> None:
        self._memory = dict(memory)

    def push(self, x: Tensor, trim: int = 0) -> Tensor | None:
        """Feed steps [N, T, C, H, W]; return those that came out, [N, T_out, C_out, ...].

        None where none came out: an encoder answers once its pools are full. `trim` leading steps
        of the result are left out.
        """
        clips, folded = len(x), _fold(x)
        for segment in self._segments:
            dropped = trim if segment is self._segments[-1] else 0
            folded = _run(segment, folded, clips, dropped, self._memory)
            if len(folded) == 0:
                return None
        return _unfold(folded, clips)


def _fold(x: Tensor) -> Tensor:
    """[N, T, C, H, W] to [T * N, C, H, W], channels last in memory."""
    return x.permute(1, 0, 3, 4, 2).contiguous().flatten(0, 1).permute(0, 3, 1, 2)


def _unfold(x: Tensor, clips: int) -> Tensor:
    """Undo `_fold`."""
    return x.reshape(-1, clips, *x.shape[1:]).transpose(0, 1).contiguous()


def _segments(layers: nn.Sequential) -> list[list[nn.Module]]:
    """The memory layers of each stage, and what stands between those of two stages.

    Between stages the stack changes resolution, so the tensors at these borders are the small
    ones: after the encoder's downscaling, before the decoder's upscaling. An in-place layer never
    stands first, where it would overwrite what a segment is to be run again from.
    """
    runs = groupby(layers, lambda layer: isinstance(layer, MemoryLayer))
    return [list(run) for _, run in runs]


def _run(
    layers: Layers, x: Tensor, clips: int, trim: int = 0, memory: Memory | None = None
) -> Tensor:
    """Run a segment's layers on [T * N, C, H, W]; without a memory x is all that there is."""
    left = list(layers)
    while left:
        layer = left.pop(0)
        if isinstance(layer, MemoryLayer):
            past = None if memory is None else _exchange_past(memory, layer, x, clips)
            x = layer(x, past, clips)
        elif isinstance(layer, (nn.Upsample, TGrow)):
            return _grow([layer, *left], x, clips, trim)
        elif isinstance(layer, TPool):
            x = x if memory is None else _fill(memory, layer, x, clips)
            if len(x) == 0:
                return x
            x = _pool(layer, left.pop(0), stack_steps(x, clips, layer.stride))
        elif isinstance(layer, nn.Conv2d) and left and isinstance(left[0], nn.ReLU):
            left.pop(0)
            if left and isinstance(pool := left[0], TPool) and _fills(pool, x, clips, memory):
                x = convolve_steps_together(layer, x, clips, pool.stride)
                x = _pool(pool, left[1], x)
                del left[:2]
            else:
                x = convolve_relu(layer, x)
        else:
            x = layer(x)
    return x


def _pool(pool: TPool, conv: nn.Module, stacked: Tensor) -> Tensor:
    """A pool and the convolution after it, on steps that are stacked on channels."""
    assert isinstance(conv, nn.Conv2d)
    return pool_and_convolve(pool.conv, conv, stacked)


def _fills(pool: TPool, x: Tensor, clips: int, memory: Memory | None) -> bool:
    """Whether these steps fill a pool, with none that waits before and none that waits after."""
    return len(x) % (pool.stride * clips) == 0 and not (memory and pool in memory)


def _grow(layers: Layers, x: Tensor, clips: int, trim: int) -> Tensor:
    """Run a segment from where steps grow to its end.

    Nothing here looks at another step. So each of the steps that a step grows into goes to the end
    by itself, where steps are smaller, and they are put in order there.
    """
    growths, rest = _growths(layers)
    steps, stride = len(x) // clips, len(growths)
    ordered = []
    for position, growth in enumerate(growths):
        # The first steps whose result at this position is behind the trim.
        first = max(0, -(-(trim - position) // stride))
        if first < steps:
            ordered.append(_run(rest, growth(x[first * clips :]), clips))
    return interleave_steps(ordered, clips) if ordered else x[:0]


def _growths(layers: Layers) -> tuple[list[Callable[[Tensor], Tensor]], Layers]:
    """What makes of a step each of those that it grows into, and the layers that follow."""
    if isinstance(layers[0], TGrow):
        return [partial(F.conv2d, weight=k) for k in layers[0].kernels()], layers[1:]
    upsample, grow, conv = layers[:3]
    assert isinstance(upsample, nn.Upsample)
    assert isinstance(grow, TGrow)
    assert isinstance(conv, nn.Conv2d)
    doubles = upsample.scale_factor != 1
    kernels = grow_kernels(grow.conv, conv, grow.stride, doubles)
    return [partial(apply_kernel, kernel=k, doubles=doubles) for k in kernels], layers[3:]
