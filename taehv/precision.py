"""The precision that networks compute in."""

from __future__ import annotations

import torch

from taehv import distributed


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What `auto`, `fp32` or `bf16` means for autocast: auto is bf16 on a GPU and fp32 on a CPU.
    None stands for float32."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if bf16 else None


def autocast(dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` on this worker's device; None leaves everything in float32."""
    kind = distributed.device().type
    return torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
