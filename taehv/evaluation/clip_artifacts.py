"""Artifacts of a few clips in memory, as training's validation measures them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from taehv.evaluation.artifacts import CONTROL, Parts, Reference, figures, parts_of
from taehv.evaluation.baselines import down_and_up
from taehv.model.alignment import FrameAlignment

NETWORK = "network"
SEPARATOR = " "


def clip_parts(
    original: Tensor, reconstructed: Tensor, alignment: FrameAlignment, trim: int | None = None
) -> dict[str, Tensor]:
    """What each clip gives to `clip_figures`, by name: [N] each.

    original, reconstructed: [N, T, 3, H, W], clamped here. alignment: the network's.
    trim: see `taehv.evaluation.artifacts.parts_of`.
    """
    rows: list[dict[str, float]] = []
    for x, y in zip(original.clamp(0, 1), reconstructed.clamp(0, 1), strict=True):
        nothing = x.new_full((1, *x.shape[-2:]), torch.nan)
        reference = Reference(x, torch.cat([nothing, x.diff(dim=0).abs().amax(dim=1)]))
        row: dict[str, float] = {}
        for name, made in ((NETWORK, y), (CONTROL, down_and_up(x[None])[0])):
            table = reference.of_original() | reference.of_reconstruction(made)
            table["mse"] = (made - x).square().mean(dim=(1, 2, 3))
            columns = {column: values.double().cpu().numpy() for column, values in table.items()}
            parts = parts_of(columns, alignment, trim)
            row |= {f"{name}{SEPARATOR}{part}": value for part, value in parts.items()}
        rows.append(row)
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def clip_figures(clips: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures over clips, by the names of `taehv.evaluation.artifact_verdict.ARTIFACTS`.

    clips: of each, what `clip_parts` gives; what is not named so is passed over.
    """

    def of(method: str) -> list[Parts]:
        start = f"{method}{SEPARATOR}"
        return [
            {
                name.removeprefix(start): value
                for name, value in clip.items()
                if name.startswith(start)
            }
            for clip in clips
        ]

    return figures(of(NETWORK), of(CONTROL))
