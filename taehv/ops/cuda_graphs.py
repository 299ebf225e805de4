"""CUDA graphs: a computation's kernels, recorded once and then started all together.

To start a kernel takes the CPU some 10 us, and many of a step's two thousand take a GPU less: it
then waits for the next. Recorded, they follow each other by themselves.
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
Kind = tuple[Any, ...]
Pool = Any
"""Memory of recordings that are replayed in the order in which they were made."""

SPARE = 2
"""How many times the most that a process has had allocated must be free for a recording. It keeps
its memory for itself: as much again may be needed by what is not recorded."""


class Recorded:
    """`function`, as a CUDA graph from its second call on.

    The first call runs as it is, and sets up what a recording must not: compilers, cuDNN. So does
    every call off a GPU, or with inputs of other shapes than the first's. Where the device lacks
    the memory, or something in it cannot be recorded, it goes on as it is, and a line in the log
    says so: recorded or not, it gives the same numbers.

    What it returns is written over by its next call, and what is differentiated must be so before.

    Args:
        function: of tensors, or None, to a tensor or a tuple of such. It does nothing but compute,
            in the same operations each time, and never waits for the device.
        name: for the log.
        parameters: by which its results, all of them, are differentiated; never by its inputs.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, parameters: Sequence[nn.Parameter] = ()
    ) -> None:
        self._function, self._name, self._parameters = function, name, tuple(parameters)
        self._kind: Kind | None = None
        self._recording: _Recording | None = None
        self._gives_up = False

    def __call__(self, *inputs: Tensor | None) -> Any:
        if self._gives_up or not can_record(inputs):
            return self._function(*inputs)
        if self._parameters and not torch.is_grad_enabled():
            return self._function(*inputs)
        kind = _kind(inputs)
        if self._kind is None:
            self._kind = kind
            return self._function(*inputs)
        if kind == self._kind and self._recording is None:
            self._recording = self._record(inputs)
        if kind != self._kind or self._recording is None:
            return self._function(*inputs)
        return self._recording(*inputs)

    def _record(self, inputs: Sequence[Tensor | None]) -> _Recording | None:
        lack = _lack_of_memory()
        if not lack:
            try:
                return _Recording(self._function, inputs, self._parameters)
            # CUDA's errors are no more than that. One of the function's own comes again, from the
            # call that is made instead.
            except RuntimeError as error:
                lack = str(error).splitlines()[0]
        self._gives_up = True
        log.warning("the %s runs without a CUDA graph: %s", self._name, lack)
        return None


class _Recording:
    """Memory for the inputs and the results, and what is between them."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Tensor | None],
        parameters: Sequence[nn.Parameter],
    ) -> None:
        self._inputs = [None if x is None else x.detach().clone() for x in inputs]
        results, self._forward, pool = record(lambda: function(*self._inputs))
        self._is_tuple = isinstance(results, tuple)
        outputs = results if self._is_tuple else (results,)
        self._outputs = tuple(None if output is None else output.detach() for output in outputs)
        self._parameters = parameters
        if parameters:
            self._to_outputs = tuple(map(torch.empty_like, outputs))
            self._to_parameters, self._backward, _ = record(
                lambda: torch.autograd.grad(
                    outputs, parameters, self._to_outputs, allow_unused=True
                ),
                pool,
            )

    def __call__(self, *inputs: Tensor | None) -> Any:
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given.detach())
        outputs = (
            _Replayed.apply(self, *self._parameters)  # type: ignore[no-untyped-call]
            if self._parameters
            else self.forward()
        )
        return outputs if self._is_tuple else outputs[0]

    def forward(self) -> tuple[Tensor | None, ...]:
        self._forward()
        return tuple(None if output is None else output.detach() for output in self._outputs)

    def backward(self, to_outputs: Sequence[Tensor]) -> list[Tensor | None]:
        for own, given in zip(self._to_outputs, to_outputs, strict=True):
            own.copy_(given)
        self._backward()
        # Autograd keeps what it is given, and adds the next pass's to it: it must not be the
        # recording's own memory.
        kept = [gradient for gradient in self._to_parameters if gradient is not None]
        copies = [torch.empty_like(gradient) for gradient in kept]
        torch._foreach_copy_(copies, kept)
        left = iter(copies)
        return [None if gradient is None else next(left) for gradient in self._to_parameters]


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: _Recording, *_: nn.Parameter) -> tuple[Tensor | None, ...]:
        ctx.recording = recording
        return recording.forward()

    @staticmethod
    def backward(ctx: Any, *to_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.recording.backward(to_outputs)


def record(work: Callable[[], T], pool: Pool = None) -> tuple[T, Replay, Pool]:
    """Record the kernels of `work`, which are not run yet.

    Returns:
        What it returned, whose memory each replay fills; the replay; and the recording's pool.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads, which read videos or write checkpoints, may go on meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            results = work()
    except RuntimeError:
        # PyTorch stays on the recording's stream otherwise, and its generator of random numbers in
        # the belief that it is recorded.
        torch.cuda.set_stream(stream)
        _renew_generator()
        raise
    return results, graph.replay, graph.pool()


def _renew_generator() -> None:
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    fresh = torch.Generator("cuda").manual_seed(generator.initial_seed())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())


def can_record(inputs: Sequence[Tensor | None]) -> bool:
    """Whether work on these may become a CUDA graph."""
    return (
        all(x is None or x.is_cuda for x in inputs)
        and not torch.compiler.is_compiling()
        # Who looks at every operation would see none.
        and not is_in_torch_dispatch_mode()
    )


def _kind(inputs: Sequence[Tensor | None]) -> Kind:
    """What a recording depends on, but for the values."""
    precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return precision, *(None if x is None else (x.shape, x.dtype) for x in inputs)


def _lack_of_memory() -> str:
    """Why a recording would leave too little; empty where it would not."""
    wanted = SPARE * torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free >= wanted:
        return ""
    return f"{free / 2**30:.1f} GiB are free, and {wanted / 2**30:.1f} GiB are asked for"
