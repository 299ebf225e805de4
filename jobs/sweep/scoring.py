"""Scores that no trial takes of itself, on the same clips: of the reference VAE, and LPIPS."""

from __future__ import annotations

import dataclasses
import json
import logging
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from data_pipeline.clips import open_sources
from jobs.cli.config import Config
from jobs.sweep.definition import Plan
from jobs.sweep.ledger import Ledger
from jobs.sweep.space import with_settings
from jobs.training.worker import RayClips
from taehv import distributed
from taehv.atomic import write_atomically
from taehv.evaluation.lpips import Lpips
from taehv.losses.teacher import FRAME_BLOCK, Teacher
from taehv.model import build_model
from taehv.model.alignment import repeat_last_frame
from taehv.run.run_folder import RunFolder
from taehv.training.validation import ValidationSet

log = logging.getLogger(__name__)

REFERENCE = "reference_vae.json"


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


def held_out(config: Config) -> ValidationSet:
    """The clips that the trials are validated on. Ray must be connected to."""
    training, validation = open_sources(
        config.data, config.train.seed, config.train.global_batch_size
    )
    clips = RayClips([training], validation, cpu_limit=config.data.decode_cpus)
    return ValidationSet(clips, config.train.validation_clips, clips_per_pass=1)


def score_reference(config: Config, folder: RunFolder) -> dict[str, float]:
    """Mean scores of the teacher by their name, as in a validation; kept in the sweep's folder."""
    if folder.exists(REFERENCE):
        kept: dict[str, float] = json.loads(folder.retrieve(REFERENCE).read_text())
        return kept
    log.info("scoring the reference VAE on the same clips")
    network: Any = _AsNetwork(Teacher.load(config.teacher, distributed.device()))
    scores = held_out(config).score(network, dtype=None)
    write_atomically(folder.local / REFERENCE, json.dumps(scores) + "\n")
    folder.publish(REFERENCE)
    return scores


@torch.no_grad()
def score_lpips(plan: Plan, ledger: Ledger) -> None:
    """Give every finished trial that has none yet its mean LPIPS, by its final weights."""
    device = distributed.device()
    judge = Lpips.load(plan.sweep.lpips, device)
    clips = held_out(plan.base).native
    for record in list(ledger.records.values()):
        if record.status != "finished" or record.lpips is not None:
            continue
        weights = RunFolder(ledger.address(record)).retrieve("final_model.safetensors")
        own = with_settings(plan.base, record.settings).model
        architecture = dataclasses.replace(own, pretrained=str(weights))
        model = build_model(architecture).to(device).eval()
        distances = []
        for _, stacked in clips:
            frames = torch.from_numpy(stacked).to(device).float() / 255
            decoded = model.decode_video(model.encode_video(frames))
            for original, reconstructed in zip(*model.alignment.pair(frames, decoded), strict=True):
                distances.append(float(judge(original, reconstructed).mean()))
        ledger.update(record.number, lpips=sum(distances) / len(distances))
