"""The weights that a run from scratch begins with: the same on every worker and restart."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import torch

from taehv import distributed
from taehv.errors import TrainingError
from taehv.interfaces import Data
from taehv.losses.teacher import Teacher
from taehv.model import build_model
from taehv.model.network import TAEHV
from taehv.model.start import (
    CLIPS,
    CLIPS_PER_CHUNK,
    LATENTS_PER_SIDE,
    StartError,
    check_start,
    solve_start,
)
from taehv.model.weights import load_weights, write_safetensors
from taehv.run.run_folder import RunFolder
from taehv.training.config import TrainingConfig

log = logging.getLogger(__name__)

FILE = "start.safetensors"
"""In a run's folder: what a restart before the first checkpoint begins with again."""


def prepare_start(
    config: TrainingConfig, data: Data, run: RunFolder, teacher: Teacher | None
) -> Path | None:
    """The file of weights to begin with; None where the network's own initialisation is asked for,
    or is all that there is for such a network or such clips. A collective.

    The main worker solves them from the first clips of training, and keeps them in the run's
    folder. Raises TrainingError, on every worker, where they cannot be written.
    """
    if config.model.pretrained or config.train.start != "solved":
        return None
    outcome: tuple[bool, str] = (False, "")
    if distributed.is_main():
        try:
            outcome = _is_there(config, run) or _solve(config, data, run, teacher), ""
        except OSError as error:
            outcome = False, str(error)
    exists, fault = distributed.from_main(outcome)
    if fault:
        raise TrainingError(f"{FILE} cannot be written to {run}: {fault}")
    if not exists:
        return None
    return run.local / FILE if distributed.is_main() else run.retrieve(FILE)


def _is_there(config: TrainingConfig, run: RunFolder) -> bool:
    """Whether an earlier attempt has left weights that fit."""
    if not run.exists(FILE):
        return False
    try:
        load_weights(TAEHV(config.model), run.retrieve(FILE))
    except TrainingError as error:
        log.warning("the start is solved anew: %s", str(error).splitlines()[0])
        return False
    return True


def _solve(config: TrainingConfig, data: Data, run: RunFolder, teacher: Teacher | None) -> bool:
    # On the CPU, beside a GPU too: the weights do not depend on the kind of machine then.
    model = build_model(config.model)
    # A short run has no use for more clips than it is trained on.
    wanted = min(CLIPS, config.train.max_steps * config.train.global_batch_size)
    parts = max(1, wanted // CLIPS_PER_CHUNK)
    schedule = (np.arange(CLIPS_PER_CHUNK) + part * CLIPS_PER_CHUNK for part in range(parts))
    meets_teacher = config.loss.encoder > 0 or config.loss.decoder_input == "teacher"
    side = LATENTS_PER_SIDE * model.space_downscale
    corners: list[np.ndarray] = []
    wanted_latents: list[torch.Tensor] = []
    for batch in data.training(schedule, []):
        clips = batch["frames"]
        # All that is used of large clips; a hundred of them would not fit into memory.
        corners.append(clips[..., :side, :side].copy())
        if teacher and meets_teacher:
            # One at a time: a step's pass may have room for no more.
            wanted_latents += [_encode(teacher, clip) for clip in clips]
    started = time.perf_counter()
    frames = torch.from_numpy(np.concatenate(corners)).float().div_(255)
    # Not before: a reader that is left in the midst would go on decoding beside the training.
    try:
        check_start(model, frames.shape[1])
    except StartError as error:
        log.warning("the run starts near the identity: %s", error)
        return False
    latents = torch.stack(wanted_latents) if wanted_latents else None
    solve_start(model, frames, latents, config.loss.decoder_input == "teacher")
    weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    write_safetensors(weights, run.local / FILE)
    run.publish(FILE)
    log.info("solved the start from %d clips in %.1f s", len(frames), time.perf_counter() - started)
    return True


def _encode(teacher: Teacher, clip: np.ndarray) -> torch.Tensor:
    """The teacher's latents of a clip, uint8 [T, 3, H, W], on the CPU."""
    frames = torch.from_numpy(clip).to(distributed.device()).float() / 255
    return teacher.encode(frames[None])[0].cpu()
