"""Each artifact by name: what it is called, and when it is one. An artifact is a warning and no
failure, since whether it is seen depends on the video; a figure that is no number is a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taehv.evaluation.verdict import Finding, Thresholds, level_of


@dataclass(frozen=True)
class Artifact:
    """How a figure is shown and judged."""

    label: str
    limit: str
    """Its name in `Thresholds`."""
    above: bool = False
    """Whether the figure should lie above the limit; else below it."""


ARTIFACTS: dict[str, Artifact] = {
    "phase": Artifact("gain between frames of a latent, dB", "artifact_phase"),
    "border": Artifact("gain lost at the border, dB", "artifact_border"),
    "moving": Artifact("gain where something moves, dB", "artifact_gain", above=True),
    "dark": Artifact("gain where it is dark, dB", "artifact_gain", above=True),
    "bright": Artifact("gain where it is bright, dB", "artifact_gain", above=True),
    "grid_8": Artifact("grid of 8 pixels, dB", "artifact_grid"),
    "grid_4": Artifact("grid of 4 pixels, dB", "artifact_grid"),
    "grid_2": Artifact("grid of 2 pixels, dB", "artifact_grid"),
    "flat_grey": Artifact("error of one grey", "artifact_flat_grey"),
    "flat_colour": Artifact("error of one saturated colour", "artifact_flat_colour"),
    "shimmer": Artifact("shimmer of what stands still", "artifact_shimmer"),
    "size": Artifact("lost in a large frame, dB", "artifact_size"),
}
"""By the names of `taehv.evaluation.artifacts` and `taehv.evaluation.probes`."""

EXPLAINED: dict[str, str] = {
    "phase": "A latent stands for several frames. Where it holds some of them better than others, "
    "motion breaks at every latent. This is the gain of the best of its frames minus that of the "
    "worst.",
    "border": "By how much less is gained in the 16 pixels at the frame's border than inside. "
    "Beyond the border a convolution sees zeros.",
    "moving": "Pixels that change by more than 25 of 255 from the frame before.",
    "dark": "Pixels with a luma below 0.2.",
    "bright": "Pixels with a luma above 0.8.",
    "grid_8": "The error's energy at this period over that at frequencies beside it, in rows and "
    "in columns. What the original's own spectrum explains, such as blur, is taken away before. A "
    "decoder doubles its resolution three times, and may leave the grid of each.",
    "flat_grey": "A clip of one grey should come back as it is. The worst of five.",
    "flat_colour": "The same of six colours as saturated as they can be.",
    "shimmer": "How much changes from frame to frame where one frame is shown again and again.",
    "size": "The same pixels, in the middle of frames of several sizes: by how much they are worse "
    "in the largest than in the best. A network that was trained on small clips has always seen a "
    "border nearby.",
}
"""What each measures, for the report; `grid_8` stands for all periods."""


def judge_artifacts(figures: Mapping[str, float], limits: Thresholds) -> list[Finding]:
    """A finding for each artifact that was measured."""
    found = []
    for name, artifact in ARTIFACTS.items():
        if name in figures:
            figure, limit = figures[name], float(getattr(limits, artifact.limit))
            passed = figure > limit if artifact.above else figure < limit
            wanted = f"{'above' if artifact.above else 'below'} {limit:g}"
            found.append(
                Finding(artifact.label, figure, wanted, level_of(figure, passed, failed=False))
            )
    return found
