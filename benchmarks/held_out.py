"""Videos of which one after the other is held out, and the fixed native clips that are scored."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.decoding_ahead import DecodedAhead
from data_pipeline.clips import open_sources
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.videos import storage
from data_pipeline.videos.index import folder_of
from data_pipeline.videos.lists import list_paths
from taehv.evaluation.linear import MOST_CLIPS, BlockShape, LinearFit, LinearLimit
from taehv.evaluation.lpips import Lpips
from taehv.model import TAEHV
from taehv.training.validation import Scores, ValidationSet

SCORES = ("psnr", "psnr_mean", "ssim", "detail", "flat_clips", "lpips")
CLIPS_PER_PASS = 8
FIT_BATCH = 4


@dataclass(frozen=True)
class ScoredClips:
    """Which clips of a held-out video are scored; no recipe changes them."""

    count: int
    size: int
    """Of a side, in pixels of the video."""
    frames: int


class HeldOut:
    """One of the videos, by whose clips a network is scored that was trained on the others."""

    def __init__(
        self,
        video: str,
        others: Sequence[str],
        clips: ScoredClips,
        folder: Path,
        processes: int,
        lpips: Lpips | None = None,
    ) -> None:
        """video, others: full paths. folder: for two lists. processes: that decode."""
        self.name = Path(video).stem
        self._lpips = lpips
        self._clips, self._processes = clips, processes
        lists = []
        for name, videos in ((f"{self.name}.train", others), (self.name, [video])):
            content = {"total": len(videos), "list": [{"path": path} for path in videos]}
            lists.append(folder / f"{name}.json")
            lists[-1].write_text(json.dumps(content))
        self._lists: dict[str, Any] = {
            "annotations": str(lists[0].resolve()),
            "validation_annotations": str(lists[1].resolve()),
            "root": "/",
            "split_by": "",
            "split_seed": 0,
        }

    def training_data(self, config: DataConfig, seed: int, batch: int) -> DecodedAhead:
        """Clips of the other videos as a recipe cuts them."""
        config = replace(config, **self._lists)
        return DecodedAhead(*open_sources(config, seed, batch), self._processes)

    def score(self, network: TAEHV) -> Scores:
        """Of the clips, in float32."""
        return _of_interest(self.validation.score(network, None))

    def score_baselines(self, block: BlockShape, coefficients: int) -> dict[str, Scores]:
        """The same of what needs no network, by the row's label."""
        limit = self._linear_limit(block, coefficients)
        scores = self.validation.score_baselines(limit)
        labels = {"mean_colour": "mean colour", "down_and_up": "8x down and up"}
        if limit is not None:
            labels["linear"] = limit.label
        return {label: _of_interest(scores[name]) for name, label in labels.items()}

    def _linear_limit(self, block: BlockShape, coefficients: int) -> LinearLimit | None:
        """Fitted to native clips of the other videos; None where they have too few blocks."""
        data = self.training_data(self._native, seed=0, batch=FIT_BATCH)
        fit = LinearFit(block, coefficients)
        schedule = (torch.arange(n, n + FIT_BATCH).numpy() for n in range(0, MOST_CLIPS, FIT_BATCH))
        for batch in data.training(schedule, []):
            fit.add(torch.from_numpy(batch["frames"]).float() / 255)
        return fit.result()

    @cached_property
    def validation(self) -> ValidationSet:
        data = self.training_data(self._native, seed=0, batch=1)
        return ValidationSet(data, self._clips.count, CLIPS_PER_PASS, self._lpips)

    @property
    def _native(self) -> DataConfig:
        return DataConfig(
            height=self._clips.size,
            width=self._clips.size,
            num_frames=self._clips.frames,
            max_frame_step=1,
            crops="native",
            brightness=0.0,
            contrast=0.0,
            saturation=0.0,
            hue=0.0,
        )


def find_videos(places: Sequence[str]) -> list[str]:
    """The full paths of the videos of some lists and folders, each once.

    Raises DataError where a list cannot be read, or lies on S3.
    """
    videos: dict[str, None] = {}
    for place in map(storage.absolute, places):
        if storage.is_s3(place):
            raise DataError(f"--videos {place}: give a list or a folder on this machine")
        for path in list_paths(place):
            videos[os.path.realpath(Path(folder_of(place), path))] = None
    return [*videos]


def choose_held_out(videos: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Which of the videos are held out in turn: `each`, or those of these names.

    Raises ValueError.
    """
    if len(videos) < 2:
        raise ValueError(
            f"--videos names {len(videos)} video: one to hold out, and one to train on"
        )
    counts = Counter(Path(video).stem for video in videos)
    names = [*counts] if [*wanted] == ["each"] else wanted
    for name in names:
        if counts[name] != 1:
            raise ValueError(
                f"--held-out {name}: {counts[name]} of the videos have this name, and one must; "
                f"there are {', '.join([*counts][:10])}"
            )
    return [video for video in videos if Path(video).stem in names]


def _of_interest(scores: Scores) -> Scores:
    return {name: scores[name] for name in SCORES if name in scores}
