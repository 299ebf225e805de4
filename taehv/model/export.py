"""Encoder and decoder as programs of `torch.export`, each for one shape.

A program holds the weights and needs nothing of this project: `torch.export.load(path).module()`
in Python, or as input to compilers that take such programs. To load one is to unpickle, which may
run anything: only files of one's own.

Shape letters: N clips, T frames, C channels, H height, W width, t latents, h and w latent size.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from taehv.errors import TrainingError
from taehv.model.network import TAEHV

TOLERANCE = 1e-4
"""Most that a program's output may differ from the network's, whose values are about 1."""


@dataclass(frozen=True)
class ExportedProgram:
    """A program that was written and checked."""

    path: Path
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    error: float
    """Largest absolute difference, over a random input, to the network run frame by frame."""


class _Part(nn.Module):
    """One method of a network as a module of its own, which is what `torch.export` takes."""

    def __init__(self, model: TAEHV, method: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, x: Tensor) -> Tensor:
        return self.method(x)


@torch.no_grad()
def export_programs(
    model: TAEHV,
    shape: tuple[int, int, int, int],
    folder: Path,
    tolerance: float = TOLERANCE,
) -> list[ExportedProgram]:
    """Write encoder.pt2 and decoder.pt2 for float32 clips of `shape` (N, T, H, W) on the CPU.

    The encoder maps NTCHW in [0, 1] to NtChw, the decoder back: frame k of its result reconstructs
    frame k of what was encoded. Each is read back from its file and compared with the network run
    the other way, frame by frame, before it takes its name. Raises TrainingError where they differ
    by more than the tolerance, ValueError for a shape that the network cannot take, OSError.
    """
    model = model.cpu().float().eval()
    n, t, height, width = shape
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(n, t, 3, height, width, generator=generator)
    latents = model.encode_video(frames, parallel=False)
    decoded = model.decode_video(latents, parallel=False)
    encoder, decoder = _Part(model, model.encode_video), _Part(model, model.decode_video)
    return [
        _export(encoder, frames, latents, folder / "encoder.pt2", tolerance),
        _export(decoder, latents, decoded, folder / "decoder.pt2", tolerance),
    ]


def _export(
    part: nn.Module, given: Tensor, expected: Tensor, path: Path, tolerance: float
) -> ExportedProgram:
    program = torch.export.export(part.eval(), (given,), strict=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # torch insists on the ending.
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        torch.export.save(program, aside)
        run: Callable[[Tensor], Tensor] = torch.export.load(aside).module()
        found = run(given)
        error = float((found - expected).abs().max())
        # Not a number is no agreement.
        if found.shape != expected.shape or not error <= tolerance:
            raise TrainingError(
                f"{path.name}: the exported program differs from the network by {error:.3g}, more "
                f"than the tolerance ({tolerance:g}); it was not written"
            )
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return ExportedProgram(path, tuple(given.shape), tuple(expected.shape), error)
