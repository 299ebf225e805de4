"""Seconds and memory of each method that has an encoder, on a clip of one size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from jobs.evaluation.methods import Methods
from taehv.evaluation.judgement import SPEED_CLIP, Speed
from taehv.evaluation.methods import NetworkMethod, TeacherMethod
from taehv.evaluation.timing import device_name, measure


@dataclass(frozen=True)
class Costs:
    """What was measured, and on what."""

    clip: tuple[int, int, int]
    """T, H, W: `SPEED_CLIP`, or what the networks' blocks make of it."""
    methods: dict[str, dict[str, Any]]
    """By method: seconds and peak bytes to encode and to decode such a clip."""
    device: str
    on_gpu: bool
    precision: str
    """Of the networks: bf16 or fp32."""

    def speed_of(self, method: str) -> Speed:
        """Of one method, for the verdict."""
        cost = self.methods[method]
        return Speed(cost["encode_seconds"], cost["decode_seconds"], self.on_gpu)


def costs(methods: Methods) -> Costs:
    """Measure, on the device where the methods are. Nothing else should be running."""
    t, *sides = SPEED_CLIP
    height, width = (-(-side // methods.multiple) * methods.multiple for side in sides)
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(1, t, 3, height, width, generator=generator).to(methods.device)
    found: dict[str, dict[str, Any]] = {}
    for method in methods.all:
        if isinstance(method, NetworkMethod) and method.key != "int8":
            coder: Any = method
        elif isinstance(method, TeacherMethod):
            coder = method.teacher
        else:
            continue
        with torch.no_grad():
            encode = measure(partial(coder.encode, frames), methods.device)
            decode = measure(partial(coder.decode, coder.encode(frames)), methods.device)
        found[method.key] = {
            "encode_seconds": encode.seconds,
            "decode_seconds": decode.seconds,
            "encode_peak_bytes": encode.peak_bytes,
            "decode_peak_bytes": decode.peak_bytes,
            "repeats": min(encode.repeats, decode.repeats),
        }
    precision = "bf16" if methods.network.dtype else "fp32"
    device = methods.device
    return Costs((t, height, width), found, device_name(device), device.type == "cuda", precision)
