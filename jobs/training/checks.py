"""What can be known to be wrong before any worker starts."""

from __future__ import annotations

import logging
import math

import torch

from jobs.cli.config import Config
from jobs.cli.errors import ConfigError
from taehv.errors import TrainingError
from taehv.losses.discriminator import SCORE_STRIDE
from taehv.losses.teacher import check_teacher, frame_rule_warning
from taehv.model import TAEHV, build_model
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Raises ConfigError for settings that do not go together, TrainingError for bad files."""
    with torch.device("meta"):
        network = TAEHV(config.model)
    _check_network(config, network)
    stages = [config.of_stage(number) for number in range(len(config.train.steps_of_stages()))]
    for number, stage in enumerate(stages, start=1):
        try:
            _check_sizes(stage, network)
        except ConfigError as error:
            if not config.train.stages:
                raise
            raise ConfigError(f"stage {number} of train.stages: {error}") from error
    lengths = sorted({stage.data.num_frames for stage in stages})
    for num_frames in filter(network.alignment.learns_another_rule, lengths):
        log.warning(
            "clips of %d frames are %d latents. Of an even number %s drops no frame, so the "
            "network learns to show each frame 3 earlier than it has to in whole videos and "
            "evaluations, which have an odd number: take data.num_frames 9, 12 or 17",
            num_frames,
            network.alignment.num_latents(num_frames),
            config.model.variant,
        )
    if fault := config.optim.contradiction():
        raise ConfigError(fault)
    if config.cluster.max_workers:
        check_workers(config, config.cluster.max_workers)
    if config.model.pretrained:
        build_model(config.model)
    if config.teacher.path:
        check_teacher(config.teacher.path)
        for warning in filter(None, map(frame_rule_warning, lengths)):
            log.warning(warning)
    elif config.loss.encoder > 0:
        log.info("no teacher (--teacher.path): the encoder loss is not used")


def _check_network(config: Config, network: TAEHV) -> None:
    if network.space_upscale != network.space_downscale:
        raise ConfigError(
            f"model.decoder_space_upscale {config.model.decoder_space_upscale}: the decoder "
            f"enlarges by {network.space_upscale} what the encoder shrinks by "
            f"{network.space_downscale}; such a network can be run but not trained"
        )
    try:
        _ = network.alignment.frame_step
    except ValueError as error:
        raise ConfigError(f"model.decoder_time_upscale: {error}") from error


def _check_sizes(config: Config, network: TAEHV) -> None:
    factor = max(network.space_downscale, SCORE_STRIDE)
    for key in ("height", "width", "validation_height", "validation_width"):
        size = getattr(config.data, key)
        if not size and key.startswith("validation"):
            continue
        if size % factor or size < 2 * SCORE_STRIDE:
            near = max(2 * SCORE_STRIDE, round(size / factor) * factor)
            near = math.ceil(near / factor) * factor
            raise ConfigError(
                f"data.{key} is {size}: {config.model.variant} needs a multiple of {factor}, "
                f"and at least {2 * SCORE_STRIDE}; the nearest is {near}"
            )


def check_workers(config: Config, workers: int) -> None:
    """Whether so many workers can share the global batch of every stage."""
    try:
        for number in range(len(config.train.steps_of_stages())):
            config.of_stage(number).train.layout(workers)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_run_folder(run: RunFolder, resume: str) -> None:
    """A run that was begun is gone on with, or left alone; it is never written over."""
    held = [name for name in ("metrics.jsonl", "final_model.pth") if run.exists(name)]
    held += checkpoint.names(run)[:1]
    if held and not resume:
        raise TrainingError(
            f"{run} holds a run already ({', '.join(held)}): go on with it with "
            "--train.resume latest, or choose another --train.run-dir"
        )
