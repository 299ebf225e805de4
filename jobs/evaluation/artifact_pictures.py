"""Pictures of each artifact where it is worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.evaluation.exhibits import frames_around, stills, write_pictures
from jobs.evaluation.measure import Sampling
from jobs.evaluation.methods import Methods
from jobs.evaluation.probing import first_frames, in_constant_memory
from jobs.evaluation.reading import VideoReader
from jobs.evaluation.scoring import ScoredVideo
from jobs.media.mp4 import Picture
from jobs.media.pictures import DIFFERENCE_GAIN, difference, picture_of
from taehv.evaluation.artifact_verdict import ARTIFACTS
from taehv.evaluation.probes import (
    COLOURS,
    GREYS,
    SETTLING_FRAMES,
    crops_by_size,
    flat_clip,
    still_clip,
    still_part,
)

Place = tuple[str, list[tuple[str, Path]]]
"""Where it is, and the pictures, each with what it shows."""

Pictures = dict[str, Place]
"""By artifact."""


def picture_artifacts(
    results: Mapping[str, Any],
    scored: Sequence[ScoredVideo],
    sampling: Sampling,
    methods: Methods,
    read: VideoReader,
    folder: Path,
) -> Pictures:
    """Write them. results: as in metrics.json."""
    found = results["artifacts"]
    pictures: Pictures = {}
    # One clip is often the worst by several figures.
    of_clips: dict[tuple[int, int], Place] = {}
    for name, place in found["worst"].items():
        key = place["video"], place["clip"]
        if key not in of_clips:
            video, result = scored[place["video"]]
            clip = result.clips[place["clip"]]
            frame = int(np.argmin(clip.per_frame["network"]["psnr"]))
            frames, index = frames_around(
                video, result, sampling, read, methods, place["clip"], frame
            )
            shown = stills(frames, index, [methods.network], folder / name)
            of_clips[key] = (f"{video.name}, frame {clip.first_frame + frame}", shown)
        pictures[name] = of_clips[key]
    for name, colours in (("flat_grey", GREYS), ("flat_colour", COLOURS)):
        colour = max(colours, key=lambda c: _badness(found["flat"][c]))
        clip_of_it = flat_clip(colours[colour], methods.device, sampling.multiple)
        shown = stills(clip_of_it, clip_of_it.shape[1] - 1, [methods.network], folder / name)
        pictures[name] = (colour, shown)
    pictures |= _of_videos(found, scored, sampling, methods, read, folder)
    return {name: pictures[name] for name in ARTIFACTS if name in pictures}


def _of_videos(
    found: Mapping[str, Any],
    scored: Sequence[ScoredVideo],
    sampling: Sampling,
    methods: Methods,
    read: VideoReader,
    folder: Path,
) -> Pictures:
    """Those of the probes that use frames of the videos."""
    videos = {video.name: video for video, _ in scored}
    pictures: Pictures = {}
    if found["shimmer"]:
        name = max(found["shimmer"], key=lambda video: _badness(found["shimmer"][video]))
        frame = first_frames(videos[name], sampling, methods, read)[0]
        with torch.no_grad():
            made = methods.network.clip(still_clip(still_part(frame, sampling.multiple)))
        first, second = (picture_of(made[:, SETTLING_FRAMES + k]) for k in (0, 1))
        label = f"their difference x{DIFFERENCE_GAIN}"
        pictures["shimmer"] = (
            name,
            write_pictures(
                [("a frame", first), ("the next", second), (label, difference(first, second))],
                folder / "shimmer",
            ),
        )
    lost = {
        video: max(sizes.values()) - [*sizes.values()][-1]
        for video, sizes in found["sizes"].items()
        if len(sizes) > 1 and None not in sizes.values()
    }
    if lost:
        name = max(lost, key=lambda video: lost[video])
        crops = crops_by_size(
            first_frames(videos[name], sampling, methods, read), sampling.multiple
        )
        original = crops[0].middle_of(crops[0].frames)[-1:]
        of_sizes: list[tuple[str, Picture]] = [("original", picture_of(original))]
        codec = in_constant_memory(methods.network)
        for crop in crops:
            made = crop.middle_of(codec(crop.frames[None])[0])[-1:]
            height, width = crop.size
            of_sizes.append((f"in a frame of {height}x{width}", picture_of(made)))
        pictures["size"] = name, write_pictures(of_sizes, folder / "size")
    return pictures


def _badness(error: float | None) -> float:
    """To find the worst by: nothing is worse than what is no number."""
    return math.inf if error is None else error
