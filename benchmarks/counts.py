"""FLOPs and bytes of a piece of work, counted operation by operation as it runs.

On the meta device nothing is computed, so that any size can be counted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.machine import Machine


@dataclass(frozen=True)
class Operation:
    """One call of an operator."""

    name: str
    shape: tuple[int, ...]
    """Of its first result."""
    flops: int
    """A multiplication and an addition are two."""
    bytes: int
    """Of all that it reads and writes, each once."""


# cuDNN's convolutions, which PyTorch's own table lacks; their second argument is the weight.
_CONVOLUTIONS = ("aten::cudnn_convolution.out", "aten::cudnn_convolution_add_relu")


def _flops(func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> int:
    if func.name() in _CONVOLUTIONS:
        return int(2 * out.numel() * args[1][0].numel())
    count = flop_registry.get(func.overloadpacket)
    return int(count(*args, **kwargs, out_val=out)) if count else 0


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        name = func.name().split("::")[-1].split(".")[0]
        if func.is_view or name in (
            "empty",
            "empty_like",
            "empty_strided",
            "detach",
            "new_empty",
            "_unsafe_view",
        ):
            return out
        # Where the result goes is among the results.
        read = (args, {name: value for name, value in kwargs.items() if name != "out"})
        given = [leaf for leaf in tree_leaves(read) if isinstance(leaf, Tensor)]
        self.operations.append(
            Operation(
                name,
                tuple(results[0].shape) if results else (),
                _flops(func, args, kwargs, out),
                sum(tensor.nbytes for tensor in (*given, *results)),
            )
        )
        return out


def count(work: Callable[[], Any]) -> list[Operation]:
    """Every operation of one run that touches memory."""
    with _Recorder() as recorder:
        work()
    return recorder.operations


def least_seconds(operations: list[Operation], machine: Machine) -> float:
    """What the work takes where each operation is as fast as products or copies allow."""
    return sum(max(o.flops / machine.flops, o.bytes / machine.bytes_per_second) for o in operations)


def layer_table(operations: list[Operation], machine: Machine, rows: int = 16) -> str:
    """The operations that take longest at the machine's limits, those of one shape together."""
    groups: dict[tuple[str, tuple[int, ...]], list[Operation]] = {}
    for operation in operations:
        groups.setdefault((operation.name, operation.shape), []).append(operation)
    longest = sorted(groups.items(), key=lambda item: -least_seconds(item[1], machine))[:rows]
    lines = [f"{'operation':<22}{'result':<24}{'calls':>6}{'GFLOP':>9}{'MB':>9}{'least ms':>10}"]
    for (name, shape), calls in longest:
        lines.append(
            f"{name:<22}{'x'.join(map(str, shape)):<24}{len(calls):>6}"
            f"{sum(c.flops for c in calls) / 1e9:>9.2f}{sum(c.bytes for c in calls) / 1e6:>9.1f}"
            f"{1e3 * least_seconds(calls, machine):>10.2f}"
        )
    return "\n".join(lines)
