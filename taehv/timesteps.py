"""The two ways to run a stack of layers over time: all steps at once, or one step after another.

Both give the same numbers. The parallel run is fast and its memory grows with T; the stepwise run
holds one past activation per memory layer and no more, and is what sequential and streaming use.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taehv.blocks import MemoryLayer, TGrow, TPool


def run_parallel(layers: nn.Sequential, x: Tensor, recompute: bool = False) -> Tensor:
    """Run all time steps at once: [N, T, C, H, W] to [N, T_out, C_out, H_out, W_out].

    T must be a multiple of the product of the stack's TPool strides. With `recompute`, the
    backward pass is left no more than what passes between segments, and runs each segment again.
    """
    n = x.shape[0]
    x = x.flatten(0, 1)
    for segment in _segments(layers):
        if recompute:
            # No layer draws random numbers, so their generator need not be put back.
            x = checkpoint(_run, segment, x, n, use_reentrant=False, preserve_rng_state=False)
        else:
            x = _run(segment, x, n)
    return x.reshape(n, -1, *x.shape[1:])


def _segments(layers: nn.Sequential) -> list[list[nn.Module]]:
    """The memory layers of each stage, and what stands between those of two stages.

    Between stages the stack changes resolution, so the tensors at these borders are the small
    ones: after the encoder's downscaling, before the decoder's upscaling. An in-place layer never
    stands first, where it would overwrite what a segment is to be run again from.
    """
    runs = groupby(layers, lambda layer: isinstance(layer, MemoryLayer))
    return [list(run) for _, run in runs]


def _run(layers: Sequence[nn.Module], x: Tensor, n: int) -> Tensor:
    """Run some layers on [N*T, C, H, W]."""
    for layer in layers:
        if isinstance(layer, MemoryLayer):
            x = layer(x, _one_step_earlier(x, n))
        elif isinstance(layer, TPool):
            # Time runs fastest within a clip, so neighbouring frames fold onto channels in order.
            nt, c, h, w = x.shape
            x = layer(x.reshape(nt // layer.stride, layer.stride * c, h, w))
        elif isinstance(layer, TGrow):
            nt, c, h, w = x.shape
            x = layer(x).reshape(nt * layer.stride, c, h, w)
        else:
            x = layer(x)
    return x


def _one_step_earlier(folded: Tensor, n: int) -> Tensor:
    """Shift [N*T, C, H, W] by one step in time within each clip, zeros coming in at t = 0."""
    x = folded.reshape(n, -1, *folded.shape[1:])
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1).flatten(0, 1)


class TimeStepper:
    """Runs a stack one time step at a time and keeps the state in between.

    The state is one past activation per memory layer and the frames that a TPool waits with, so
    memory does not depend on how many frames have gone through.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        self._layers = list(layers)
        self._past: dict[int, Tensor] = {}
        self._waiting: dict[int, list[Tensor]] = {}

    def push(self, frame: Tensor) -> list[Tensor]:
        """Feed one step [N, C, H, W]; return the steps that came out, earliest first.

        An encoder answers with nothing until its pools are full, a decoder with several at once.
        """
        out: list[Tensor] = []
        self._advance(frame, 0, out)
        return out

    def _advance(self, x: Tensor, start: int, out: list[Tensor]) -> None:
        """Carry x through the layers from `start` on, appending what leaves the stack to `out`."""
        for index in range(start, len(self._layers)):
            layer = self._layers[index]
            if isinstance(layer, MemoryLayer):
                past = self._past.get(index)
                self._past[index] = x
                x = layer(x, torch.zeros_like(x) if past is None else past)
            elif isinstance(layer, TPool):
                waiting = self._waiting.setdefault(index, [])
                waiting.append(x)
                if len(waiting) < layer.stride:
                    return
                x = layer(torch.cat(waiting, 1))
                waiting.clear()
            elif isinstance(layer, TGrow):
                # Each grown frame goes to the end before the next one starts: depth first keeps
                # the memory layers behind this one in time order and the intermediates few.
                for grown in layer(x).chunk(layer.stride, 1):
                    self._advance(grown, index + 1, out)
                return
            else:
                x = layer(x)
        out.append(x)
