"""CUDA graphs: a computation's kernels are captured once and then launched all together.

The CPU needs about 10 us to launch a kernel, and many of a step's two thousand kernels take less
on the GPU, which then waits for the next launch. A captured graph has no such gaps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

log = logging.getLogger(__name__)

T = TypeVar("T")
Replay = Callable[[], None]
Signature = tuple[Any, ...]
Pool = Any
"""Memory that graphs share; they must be replayed in the order in which they were captured."""

MEMORY_FACTOR = 2
"""A capture needs this many times the process's peak allocation to be free. A graph never gives its
memory back, and what is not captured may need as much again."""


class GraphedCallable:
    """`function`, replayed as a CUDA graph from its second call on.

    The first call runs eagerly, since compilers and cuDNN set themselves up in it, which a capture
    forbids. Calls off a GPU, or with shapes other than the first call's, run eagerly too. If memory
    is short or an operation cannot be captured, a warning says so and every call runs eagerly. The
    numbers are the same either way.

    Each call overwrites the results of the one before: call backward before the next forward.

    Args:
        function: takes tensors or None, returns a tensor or a tuple of tensors. It only computes,
            by the same operations each time, and never synchronises with the device.
        name: what the log calls it.
        parameters: what gradients are taken for, of all results. Inputs never get a gradient.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, parameters: Sequence[nn.Parameter] = ()
    ) -> None:
        self._function, self._name, self._parameters = function, name, tuple(parameters)
        self._signature: Signature | None = None
        self._graphs: _CapturedGraphs | None = None
        self._disabled = False

    def __call__(self, *inputs: Tensor | None) -> Any:
        if self._disabled or not can_capture(inputs):
            return self._function(*inputs)
        if self._parameters and not torch.is_grad_enabled():
            return self._function(*inputs)
        signature = _signature(inputs)
        if self._signature is None:
            self._signature = signature
            return self._function(*inputs)
        if signature == self._signature and self._graphs is None:
            self._graphs = self._capture(inputs)
        if signature != self._signature or self._graphs is None:
            return self._function(*inputs)
        return self._graphs(*inputs)

    def _capture(self, inputs: Sequence[Tensor | None]) -> _CapturedGraphs | None:
        reason = _memory_shortage()
        if not reason:
            try:
                return _CapturedGraphs(self._function, inputs, self._parameters)
            # CUDA raises no narrower class. An error of the function itself is raised again by the
            # eager call that follows.
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
        self._disabled = True
        log.warning("the %s runs without a CUDA graph: %s", self._name, reason)
        return None


class _CapturedGraphs:
    """The graph of the forward pass and, with parameters, that of the backward pass."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Tensor | None],
        parameters: Sequence[nn.Parameter],
    ) -> None:
        self._inputs = [None if x is None else x.detach().clone() for x in inputs]
        results, self._forward, pool = capture(lambda: function(*self._inputs))
        self._is_tuple = isinstance(results, tuple)
        outputs = results if self._is_tuple else (results,)
        self._outputs = tuple(None if output is None else output.detach() for output in outputs)
        self._parameters = parameters
        if parameters:
            self._output_grads = tuple(map(torch.empty_like, outputs))
            # What a frozen part of a network gives has no gradient.
            differentiable = [
                pair
                for pair in zip(outputs, self._output_grads, strict=True)
                if pair[0].requires_grad
            ]
            ends, end_grads = zip(*differentiable, strict=True)
            self._parameter_grads, self._backward, _ = capture(
                lambda: torch.autograd.grad(ends, parameters, end_grads, allow_unused=True), pool
            )

    def __call__(self, *inputs: Tensor | None) -> Any:
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given.detach())
        outputs = (
            _GraphFunction.apply(self, *self._parameters)  # type: ignore[no-untyped-call]
            if self._parameters
            else self.forward()
        )
        return outputs if self._is_tuple else outputs[0]

    def forward(self) -> tuple[Tensor | None, ...]:
        self._forward()
        return tuple(None if output is None else output.detach() for output in self._outputs)

    def backward(self, output_grads: Sequence[Tensor]) -> list[Tensor | None]:
        for own, given in zip(self._output_grads, output_grads, strict=True):
            own.copy_(given)
        self._backward()
        # Autograd accumulates the next pass's gradients into these tensors, so they must not be the
        # graph's own memory.
        kept = [gradient for gradient in self._parameter_grads if gradient is not None]
        copies = [torch.empty_like(gradient) for gradient in kept]
        torch._foreach_copy_(copies, kept)
        left = iter(copies)
        return [None if gradient is None else next(left) for gradient in self._parameter_grads]


class _GraphFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graphs: _CapturedGraphs, *_: nn.Parameter) -> tuple[Tensor | None, ...]:
        ctx.graphs = graphs
        return graphs.forward()

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.graphs.backward(output_grads)


def capture(work: Callable[[], T], pool: Pool = None) -> tuple[T, Replay, Pool]:
    """Capture the kernels of `work` without running them.

    Returns what `work` returned, whose memory each replay fills; the replay; and the graph's pool.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads read videos and write checkpoints during the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            results = work()
    except RuntimeError:
        # After a failure PyTorch stays on the capture's stream, and its random generator keeps
        # believing that a capture is under way.
        torch.cuda.set_stream(stream)
        _reset_generator()
        raise
    return results, graph.replay, graph.pool()


def _reset_generator() -> None:
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    fresh = torch.Generator("cuda").manual_seed(generator.initial_seed())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())


def can_capture(inputs: Sequence[Tensor | None]) -> bool:
    """Whether a computation on these inputs may become a CUDA graph."""
    return (
        all(x is None or x.is_cuda for x in inputs)
        and not torch.compiler.is_compiling()
        # A dispatch mode would see no operation of a replay.
        and not is_in_torch_dispatch_mode()
    )


def _signature(inputs: Sequence[Tensor | None]) -> Signature:
    """What a graph is fixed to: precision, shapes and dtypes."""
    precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return precision, *(None if x is None else (x.shape, x.dtype) for x in inputs)


def _memory_shortage() -> str:
    """Why there is too little memory for a capture; empty if there is enough."""
    wanted = MEMORY_FACTOR * torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free >= wanted:
        return ""
    return f"{free / 2**30:.1f} GiB are free, and {wanted / 2**30:.1f} GiB are asked for"
