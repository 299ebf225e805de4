"""The artifacts of an evaluation, as metrics.json has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.evaluation.measure import ClipResult, VideoResult
from taehv.evaluation.artifact_verdict import ARTIFACTS
from taehv.evaluation.artifacts import CONTROL, Parts, gains
from taehv.evaluation.artifacts import figures as figures_of
from taehv.evaluation.metrics import psnr_of
from taehv.evaluation.probes import Probes

LEFT_OUT = ("int8", "mean_colour")
"""Methods that say nothing here: the first is the network, and the second has no pixels."""


def summarise_artifacts(
    videos: Sequence[VideoResult], methods: Sequence[str], probes: Probes
) -> dict[str, Any]:
    """See `jobs.evaluation.results`. methods: their keys."""
    clips = [clip for video in videos for clip in video.clips]
    shown = [method for method in methods if method not in LEFT_OUT]
    by_method = {method: gains(*_parts(clips, method)) for method in shown if method != CONTROL}
    figures = {method: figures_of(*_parts(clips, method)) for method in by_method}
    figures["network"] |= probes.figures()
    return {
        "figures": figures,
        "phases": {method: found.phases for method, found in by_method.items()},
        "kinds": {
            method: {
                kind: {"there": there, "elsewhere": elsewhere}
                for kind, (there, elsewhere) in found.kinds.items()
            }
            for method, found in by_method.items()
        },
        "flat": probes.flat,
        "shimmer": probes.shimmer,
        "sizes": {
            video: {f"{h}x{w}": float(psnr_of(error)) for (h, w), error in errors.items()}
            for video, errors in probes.sizes.items()
        },
        "worst": _worst(videos),
    }


def _parts(clips: Sequence[ClipResult], method: str) -> tuple[list[Parts], list[Parts]]:
    """Of a method, and of the control."""
    return (
        [clip.artifacts[method] for clip in clips],
        [clip.artifacts[CONTROL] for clip in clips],
    )


def _worst(videos: Sequence[VideoResult]) -> dict[str, dict[str, int]]:
    """By artifact, the clip of which the network's figure is the worst."""
    of_clips: list[tuple[dict[str, float], dict[str, int]]] = [
        (figures_of(*_parts([clip], "network")), {"video": v, "clip": c})
        for v, video in enumerate(videos)
        for c, clip in enumerate(video.clips)
    ]
    found = {}
    for name, artifact in ARTIFACTS.items():
        having = [(figures, place) for figures, place in of_clips if name in figures]
        if having:
            worst = min if artifact.above else max
            found[name] = worst(having, key=lambda entry: entry[0][name])[1]
    return found
