"""Seconds and memory of each method that has an encoder, on a clip of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from jobs.evaluation.contestants import Contestants
from taehv.evaluation.judgement import SPEED_CLIP, Speed
from taehv.evaluation.methods import NetworkMethod, TeacherMethod
from taehv.evaluation.timing import device_name, measure

Cost = dict[str, float | int | None]


@dataclass(frozen=True)
class Costs:
    """What was measured, and on what."""

    methods: dict[str, Cost]
    """By method: seconds and peak bytes to encode and to decode a clip of `SPEED_CLIP`."""
    device: str
    on_gpu: bool
    precision: str
    """Of the networks: bf16 or fp32."""

    def speed_of(self, method: str) -> Speed:
        """Of one method, for the verdict."""
        encode = self.methods[method]["encode_seconds"]
        decode = self.methods[method]["decode_seconds"]
        assert encode is not None
        assert decode is not None
        return Speed(encode, decode, self.on_gpu)


def costs(contestants: Contestants) -> Costs:
    """Measure, on the device where the contestants are. Nothing else should be running."""
    t, height, width = SPEED_CLIP
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(1, t, 3, height, width, generator=generator).to(contestants.device)
    found: dict[str, Cost] = {}
    for method in contestants.methods:
        if isinstance(method, NetworkMethod) and method.key != "int8":
            coder: Any = method
        elif isinstance(method, TeacherMethod):
            coder = method.teacher
        else:
            continue
        with torch.no_grad():
            encode = measure(lambda: coder.encode(frames), contestants.device)  # noqa: B023
            latents = coder.encode(frames)
            decode = measure(lambda: coder.decode(latents), contestants.device)  # noqa: B023
        found[method.key] = {
            "encode_seconds": encode.seconds,
            "decode_seconds": decode.seconds,
            "encode_peak_bytes": encode.peak_bytes,
            "decode_peak_bytes": decode.peak_bytes,
            "repeats": min(encode.repeats, decode.repeats),
        }
    device = contestants.device
    precision = "bf16" if contestants.network.dtype else "fp32"
    return Costs(found, device_name(device), device.type == "cuda", precision)
