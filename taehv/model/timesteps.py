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


class _State:
    """What a stack remembers from one call to the next."""

    def __init__(self) -> None:
        self.past: dict[nn.Module, Tensor] = {}
        self.waiting: dict[nn.Module, Tensor] = {}

    def exchange_past(self, layer: nn.Module, x: Tensor, clips: int) -> Tensor | None:
        """The step before x, [N, C, H, W], None at the start; x's last takes its place."""
        past = self.past.get(layer)
        # A view of a chunk would keep the whole chunk.
        self.past[layer] = x if len(x) == clips else x[-clips:].clone()
        return past

    def waits(self, layer: TPool) -> bool:
        """Whether steps wait for a pool to be filled."""
        return layer in self.waiting

    def fill(self, layer: TPool, x: Tensor, clips: int) -> Tensor:
        """The steps that wait and x, as far as they fill the pool; the rest waits."""
        if layer in self.waiting:
            x = torch.cat([self.waiting.pop(layer), x])
        whole = len(x) // (layer.stride * clips) * layer.stride * clips
        if whole < len(x):
            self.waiting[layer] = x[whole:]
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


Memory = dict[tuple[nn.Module, str], Tensor]
"""What a `TimeStepper` remembers: by layer, its past activation, or the steps a pool waits with."""


class TimeStepper:
    """Runs a stack some time steps at a time and keeps the state in between.

    The state is one past activation per memory layer and the frames that a TPool waits with, so
    memory does not depend on how many frames have gone through.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        self._layers = list(layers)
        self._segments = _segments(layers)
        self._state = _State()

    @property
    def memory(self) -> Memory:
        """All that later steps depend on, in the order of the layers."""
        kinds = (("past", self._state.past), ("waiting", self._state.waiting))
        return {
            (layer, kind): held[layer]
            for layer in self._layers
            for kind, held in kinds
            if layer in held
        }

    @memory.setter
    def memory(self, memory: Memory) -> None:
        self._state = _State()
        for (layer, kind), x in memory.items():
            (self._state.past if kind == "past" else self._state.waiting)[layer] = x

    def push(self, x: Tensor, trim: int = 0) -> Tensor | None:
        """Feed steps [N, T, C, H, W]; return those that came out, [N, T_out, C_out, ...].

        None where none came out: an encoder answers once its pools are full. `trim` leading steps
        of the result are left out.
        """
        clips, folded = len(x), _fold(x)
        for segment in self._segments:
            dropped = trim if segment is self._segments[-1] else 0
            folded = _run(segment, folded, clips, dropped, self._state)
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
    layers: Layers, x: Tensor, clips: int, trim: int = 0, state: _State | None = None
) -> Tensor:
    """Run a segment's layers on [T * N, C, H, W]."""
    left = list(layers)
    while left:
        layer = left.pop(0)
        if isinstance(layer, MemoryLayer):
            x = layer(x, state.exchange_past(layer, x, clips) if state else None, clips)
        elif isinstance(layer, (nn.Upsample, TGrow)):
            return _grow([layer, *left], x, clips, trim)
        elif isinstance(layer, TPool):
            x = state.fill(layer, x, clips) if state else x
            if len(x) == 0:
                return x
            x = _pool(layer, left.pop(0), stack_steps(x, clips, layer.stride))
        elif isinstance(layer, nn.Conv2d) and left and isinstance(left[0], nn.ReLU):
            left.pop(0)
            if left and isinstance(pool := left[0], TPool) and _fills(pool, x, clips, state):
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


def _fills(pool: TPool, x: Tensor, clips: int, state: _State | None) -> bool:
    """Whether these steps fill a pool, with none that waits before and none that waits after."""
    return len(x) % (pool.stride * clips) == 0 and not (state and state.waits(pool))


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
