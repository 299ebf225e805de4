"""Artifacts: faults that people see in a reconstruction, and that no mean error shows.

Some are parts of the picture in which a network does worse than in the rest: some of a latent's
frames, the border, what moves, what is dark. Such parts may be harder in themselves. So they are
measured by the *gain*: how far the network's error lies below that of a reconstruction which cannot
have the fault, since it treats all pixels of all frames alike (`CONTROL`, see
`taehv.evaluation.baselines`). Beside these stands the energy that a network adds at the periods of
its own upsampling. What a network makes of pictures that were made for it is in
`taehv.evaluation.probes`.

`Reference` measures frames, `parts_of` sums up a clip's, and `figures` are those of the sums of
many. All energies are raised by what rounding to 8 bits costs: a fault that no file
can hold counts for nothing.

Shape letters: T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taehv.evaluation.metrics import LUMA, STILL, Figures
from taehv.model.alignment import FrameAlignment

CONTROL = "down_and_up"
"""The key of the reconstruction that gains are over."""

QUANTUM = 1 / (12 * 255**2)
"""Variance of rounding to 8 bits, of values in [0, 1]."""

BORDER = 16
"""Pixels from the frame's edge: two latents of the smallest networks."""

DARK, BRIGHT = 0.2, 0.8
"""Luma of a pixel."""

MOVING = 25 / 255
"""A pixel moves if a channel changes by more than this from the frame before."""

KINDS = ("border", "dark", "bright", "moving", "still")
"""Kinds of pixels that are measured apart."""

FEWEST_PIXELS = 1e-3
"""Part of all pixels below which nothing is said of a kind."""

SEGMENT = 64
"""Pixels of a piece of a row or column whose spectrum is taken."""

PERIODS = {8: (8, 24), 4: (16,), 2: (32,)}
"""Bins of a segment's spectrum at which a pattern that repeats after so many pixels has energy, and
one that repeats after fewer has none."""

ROWS_APART = 4
"""Every so many rows and columns are transformed: neighbours say the same."""

Parts = dict[str, float]
"""What a clip gives to the figures over clips: `mse`; of each kind of pixels its share, and its
error as a part of the frame's; of each bin and direction the energies at it and beside it; of each
phase the sum of its frames' errors, and their number."""


class Reference:
    """Frames of an original, with what it alone decides, to be compared with reconstructions."""

    def __init__(self, x: Tensor, change: Tensor) -> None:
        """x: [T, 3, H, W] in [0, 1]. change: [T, H, W], |x[t] - x[t - 1]|, the largest of the
        channels; NaN where there is no frame before."""
        self._x = x
        self._kinds = _kinds(x, change)
        self._spectra = {name: _spectra(turned) for name, turned in _directions(x).items()}

    def of_original(self) -> dict[str, Tensor]:
        """Columns that are the same for all reconstructions, [T] each."""
        return {
            f"{kind}_share": mask.float().mean(dim=(1, 2)).expand(len(self._x))
            for kind, mask in self._kinds.items()
        }

    def of_reconstruction(self, y: Tensor) -> dict[str, Tensor]:
        """Columns of a reconstruction, shaped as the original; [T] each."""
        difference = y - self._x
        error = difference.square().mean(dim=1)
        columns = {
            f"{kind}_error": (error * mask).mean(dim=(1, 2)) for kind, mask in self._kinds.items()
        }
        for name, turned in _directions(difference).items():
            for place, energy in _grid_energies(_spectra(turned), self._spectra[name]).items():
                columns[f"grid_{name}_{place}"] = energy
        return columns


def _kinds(x: Tensor, change: Tensor) -> dict[str, Tensor]:
    """Which pixels are of each kind, [T or 1, H, W]."""
    height, width = x.shape[-2:]
    border = torch.ones(1, height, width, dtype=torch.bool, device=x.device)
    border[:, BORDER : max(height - BORDER, BORDER), BORDER : max(width - BORDER, BORDER)] = False
    luma = torch.einsum("tchw,c->thw", x, x.new_tensor(LUMA))
    return {
        "border": border,
        "dark": luma < DARK,
        "bright": luma > BRIGHT,
        "moving": change > MOVING,
        "still": change <= STILL,
    }


def _directions(frames: Tensor) -> dict[str, Tensor]:
    """The lines along which spectra are taken, [T, 3, lines, pixels]."""
    return {"across": frames[:, :, ::ROWS_APART], "down": frames.mT[:, :, ::ROWS_APART]}


def _spectra(lines: Tensor) -> Tensor | None:
    """Of the segments of all lines, [T, segments, bins], so scaled that white noise has its
    variance in each bin (Welch 1967); None where a line is shorter than a segment."""
    if lines.shape[-1] < SEGMENT:
        return None
    window = torch.hann_window(SEGMENT, periodic=True, device=lines.device)
    window /= window.square().sum().sqrt()
    segments = lines.unfold(-1, SEGMENT, SEGMENT // 2) * window
    spectra: Tensor = torch.fft.rfft(segments).flatten(1, -2)
    return spectra


def _grid_energies(error: Tensor | None, original: Tensor | None) -> dict[str, Tensor]:
    """At the bins of `PERIODS`, and beside them, the error's energy that the original does not
    explain, [T] each.

    From the error's spectrum its best estimate by the original's is taken away, bin by bin (1 minus
    the coherence; Bendat and Piersol 2010, "Random Data", chapter 6). Blur is the original at
    another strength, and so is a codec's grid that the network smooths away: neither is a grid of
    the network.
    """
    if error is None or original is None:
        return {}
    shared = (error * original.conj()).mean(1).abs().square()
    explained = shared / original.abs().square().mean(1).clamp(min=1e-12)
    left = (error.abs().square().mean(1) - explained).clamp(min=0)
    found: dict[str, Tensor] = {}
    for k in [k for bins in PERIODS.values() for k in bins]:
        below, above = left[:, k - 5 : k - 2].mean(1), left[:, k + 3 : k + 6]
        # The spectrum of a picture is a power of the frequency. The last bin has none above it.
        beside = (below * above.mean(1)).sqrt() if above.shape[1] == 3 else below
        found |= {f"{k}_at": left[:, k], f"{k}_beside": beside}
    return found


def parts_of(
    table: Mapping[str, Figures], alignment: FrameAlignment, trim: int | None = None
) -> Parts:
    """A clip's, from its frame table (`taehv.evaluation.frames`).

    alignment: the judged network's. The phase of a frame is its place among the frames of its
    latent; those of the first latent, before which nothing is known, have none. trim: raw frames
    that were dropped before the first; None: as of a whole video.
    """
    wanted = ("grid_", *(f"{kind}_" for kind in KINDS))
    parts = {
        column: float(np.mean(values))
        for column, values in table.items()
        if column == "mse" or column.startswith(wanted)
    }
    length = alignment.time_upscale
    numbers = np.arange(len(table["mse"])) + (length - 1 if trim is None else trim)
    for phase in range(length):
        chosen = (numbers % length == phase) & (numbers >= length)
        parts[f"phase_{phase}_error"] = float(table["mse"][chosen].sum())
        parts[f"phase_{phase}_frames"] = float(chosen.sum())
    return parts


@dataclass(frozen=True)
class Gains:
    """How far a network's error lies below the control's, dB, by part of the picture."""

    phases: list[float]
    """By a frame's place within its latent; empty where no clip has two latents."""
    kinds: dict[str, tuple[float, float]]
    """By kind of pixels: of these, and of all others. Kinds that hardly occur are left out."""

    def figures(self) -> dict[str, float]:
        """`phase`: between the best and the worst of a latent's frames. `border`: by how much less
        is gained there than inside. `moving`, `dark`, `bright`: gained there. All in dB; what was
        not measured is left out."""
        # By numpy, whose extremes of what holds a NaN are NaN.
        found = {"phase": float(np.ptp(self.phases))} if self.phases else {}
        if "border" in self.kinds:
            found["border"] = self.kinds["border"][1] - self.kinds["border"][0]
        return found | {
            kind: self.kinds[kind][0] for kind in ("moving", "dark", "bright") if kind in self.kinds
        }


def gains(network: Sequence[Parts], control: Sequence[Parts]) -> Gains:
    """Over clips, of which each counts the same. network, control: of the same clips."""
    ours, theirs = _mean(network), _mean(control)
    phases = range(sum(key.startswith("phase_") for key in ours) // 2)
    by_phase = [
        decibels(theirs[f"phase_{k}_error"] / frames, ours[f"phase_{k}_error"] / frames)
        for k in phases
        if (frames := ours[f"phase_{k}_frames"]) > 0
    ]
    kinds = {}
    for kind in KINDS:
        share = ours[f"{kind}_share"]
        if FEWEST_PIXELS < share < 1 - FEWEST_PIXELS:
            ours_there, theirs_there = (parts[f"{kind}_error"] for parts in (ours, theirs))
            kinds[kind] = (
                decibels(theirs_there / share, ours_there / share),
                decibels(
                    (theirs["mse"] - theirs_there) / (1 - share),
                    (ours["mse"] - ours_there) / (1 - share),
                ),
            )
    return Gains(by_phase if len(by_phase) == len(phases) > 1 else [], kinds)


def grid(network: Sequence[Parts]) -> dict[int, float]:
    """By period in pixels: the energy at it over that beside it, dB, in the direction and at the
    bin where it is highest; empty where no clip has a segment."""
    ours = _mean(network)
    found: dict[int, float] = {}
    for period, bins in PERIODS.items():
        excess = [
            decibels(ours[f"{name}_at"], ours[f"{name}_beside"])
            for name in (f"grid_{direction}_{k}" for direction in ("across", "down") for k in bins)
            if f"{name}_at" in ours
        ]
        if excess:
            found[period] = float(np.max(excess))
    return found


def figures(network: Sequence[Parts], control: Sequence[Parts]) -> dict[str, float]:
    """All figures over clips, by the names of `taehv.evaluation.artifact_verdict.ARTIFACTS`."""
    excess = {f"grid_{period}": value for period, value in grid(network).items()}
    return gains(network, control).figures() | excess


def decibels(energy: float, other: float) -> float:
    """Of the first over the second, each raised by `QUANTUM`; NaN where either is."""
    return 10 * math.log10((max(energy, 0) + QUANTUM) / (max(other, 0) + QUANTUM))


def _mean(clips: Sequence[Parts]) -> Parts:
    """Over the clips that have it."""
    names = {name: None for clip in clips for name in clip}
    return {name: float(np.mean([clip[name] for clip in clips if name in clip])) for name in names}
