"""A stand-in for CUDA graphs where there is no GPU: operations are written down, and done again.

As with a graph, a replay touches nothing but the memory of the capture: no line
of Python runs again, what a capture computed is lost until it is replayed, and what it wrote to
memory that was there before did not happen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taehv.ops import cuda_graphs

T = TypeVar("T")


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have `taehv.ops.cuda_graphs` capture on the CPU. Returns the operations of each capture."""
    lengths: list[int] = []

    def capture(work: Callable[[], T], pool: object = None) -> tuple[T, cuda_graphs.Replay, object]:
        tape = _Tape()
        with tape:
            results = work()
        lengths.append(len(tape.operations))
        tape.forget()
        return results, tape.replay, pool

    monkeypatch.setattr(cuda_graphs, "capture", capture)
    monkeypatch.setattr(cuda_graphs, "can_capture", lambda inputs: True)
    monkeypatch.setattr(cuda_graphs, "_memory_shortage", lambda: "")
    return lengths


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Mapping[str, Any], Any]] = []
        self._own: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)) if func._schema.is_mutable else ():
            where = tensor.untyped_storage().data_ptr()
            if where not in self._own and where not in self._before:
                self._before[where] = tensor, tensor.detach().clone()
        known = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, out))
        for tensor in _tensors(out):
            where = tensor.untyped_storage().data_ptr()
            if where not in known:
                self._own[where] = tensor
        return out

    def forget(self) -> None:
        """Leave memory as a capture leaves it."""
        with torch.no_grad():
            for tensor in self._own.values():
                if tensor.is_floating_point():
                    tensor.data.fill_(torch.nan)
            for tensor, value in self._before.values():
                tensor.data.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(out), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.data.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
