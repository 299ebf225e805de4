"""`torch.compile`, for the shapes that a network meets, where it can be had."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)


SHAPES = 64
"""Most that a process compiles a function for."""


class Compiled:
    """`function`, compiled for each shape that it is called with.

    Where it cannot be compiled, for lack of a C++ compiler say, it runs as it is and a line in the
    log says so: compiled or not, it gives the same numbers but for rounding.

    Args:
        function: without side effects, since a call that fails is made again.
        name: for the log.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        # It takes a second to import, and few ask for it.
        import torch._dynamo.config as dynamo
        from torch._dynamo.exc import TorchDynamoException

        # Beyond 8 shapes it would compile no more, and say so to nobody who reads it.
        dynamo.recompile_limit = max(dynamo.recompile_limit, SHAPES)
        self._function, self._name = function, name
        self._failure = TorchDynamoException
        self._compiled: Callable[..., Any] | None = torch.compile(function, dynamic=False)

    def __call__(self, *inputs: Any) -> Any:
        if self._compiled is not None:
            try:
                return self._compiled(*inputs)
            except self._failure as error:
                self._compiled = None
                reason = next((line for line in str(error).splitlines() if line.strip()), "")
                log.warning(
                    "the %s runs without torch.compile, which failed: %s: %s",
                    self._name,
                    type(error).__name__,
                    reason,
                )
        return self._function(*inputs)
