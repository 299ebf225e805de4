"""The precision that networks compute in."""

from __future__ import annotations

import torch

from taehv import distributed


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` on this worker's device; None leaves everything in float32."""
    kind = distributed.device().type
    return torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
