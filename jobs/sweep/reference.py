"""The reference VAE itself, scored as the trials are: the same clips, the same code."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from data_pipeline.clips import open_sources
from jobs.config import Config
from jobs.worker import RayClips
from taehv import distributed
from taehv.alignment import repeat_last_frame
from taehv.checkpoint import write_atomically
from taehv.run_folder import RunFolder
from taehv.teacher import FRAME_BLOCK, Teacher
from taehv.validation import ValidationSet

NAME = "reference_vae.json"


class _AsNetwork:
    """A teacher with the face of a network, as far as validation looks at one."""

    training = False

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.alignment = SimpleNamespace(pair=self._pair)

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def encode_video(self, frames: Tensor) -> Tensor:
        missing = -(frames.shape[1] - 1) % FRAME_BLOCK
        return self._teacher.encode(repeat_last_frame(frames, frames.shape[1] + missing))

    def decode_video(self, latents: Tensor) -> Tensor:
        return self._teacher.decode(latents)

    def _pair(self, frames: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        return frames, decoded[:, : frames.shape[1]]


def score_reference(config: Config, folder: RunFolder) -> dict[str, float]:
    """Mean scores by their name, as in a validation; kept in the sweep's folder."""
    if folder.exists(NAME):
        kept: dict[str, float] = json.loads(folder.retrieve(NAME).read_text())
        return kept
    training, validation = open_sources(
        config.data, config.train.seed, config.train.global_batch_size
    )
    clips = RayClips(training, validation, cpu_limit=config.data.decode_cpus)
    held_out = ValidationSet(clips, config.train.validation_clips, clips_per_pass=1)
    network: Any = _AsNetwork(Teacher.load(config.teacher, distributed.device()))
    scores = held_out.score(network, dtype=None)
    write_atomically(folder.local / NAME, json.dumps(scores) + "\n")
    folder.publish(NAME)
    return scores
