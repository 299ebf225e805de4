"""What can be known to be wrong before any worker starts."""

from __future__ import annotations

import logging
import math

import torch

from jobs.cli.config import Config
from jobs.cli.errors import ConfigError
from taehv.errors import TrainingError
from taehv.losses.discriminator import SCORE_STRIDE
from taehv.losses.replay import clip_bytes
from taehv.losses.teacher import check_teacher, frame_rule_warning
from taehv.model import TAEHV, build_model
from taehv.model.blocks import IMAGE_CHANNELS
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Raises ConfigError for settings that do not go together, TrainingError for bad files."""
    with torch.device("meta"):
        network = TAEHV(config.model)
    _check_network(config, network)
    stages = config.each_stage()
    # Validation may have the sizes of `data`, which no stage has.
    _check_sizes(config, network)
    for number, stage in enumerate(stages, start=1):
        try:
            _check_sizes(stage, network)
            _check_replay(stage, network)
        except ConfigError as error:
            if not config.train.stages:
                raise
            raise ConfigError(f"stage {number} of train.stages: {error}") from error
    lengths = sorted({part.data.num_frames for part in [config, *stages]})
    for num_frames in filter(network.alignment.learns_another_rule, lengths):
        log.warning(
            "clips of %d frames are %d latents. Of an even number %s drops no frame, so the "
            "network learns to show each frame 3 earlier than it has to in whole videos and "
            "evaluations, which have an odd number: take data.num_frames 9, 12 or 17",
            num_frames,
            network.alignment.num_latents(num_frames),
            config.model.variant,
        )
    if fault := config.contradiction():
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


def _check_replay(config: Config, network: TAEHV) -> None:
    """Raises ConfigError where the adversary's memory of a slot does not hold one clip."""
    if not config.loss.seraena:
        return
    data, seraena = config.data, config.seraena
    alignment = network.alignment
    shown = -(-data.num_frames // alignment.frame_step)
    frames = min(shown, alignment.num_decoded(data.num_frames))
    needed = clip_bytes(
        (frames, IMAGE_CHANNELS, data.height, data.width),
        seraena.frames_per_group,
        network.latent_channels,
        network.space_downscale,
    )
    slots = config.train.global_batch_size
    if needed > int(seraena.replay_gigabytes * 1e9) // slots:
        raise ConfigError(
            f"seraena.replay_gigabytes is {seraena.replay_gigabytes:g}: too little for the "
            f"{slots} slots of the batch, of which a clip takes {needed / 1e9:.2g} each; set "
            f"{math.ceil(needed * slots / 1e8) / 10:g} or more"
        )


def check_workers(config: Config, workers: int) -> None:
    """Whether so many workers can share the global batch of every stage."""
    stages = len(config.train.stages)
    for number in range(max(1, stages)):
        try:
            config.of_stage(number).train.layout(workers)
        except ValueError as error:
            where = f"stage {number + 1} of train.stages: " if stages else ""
            raise ConfigError(f"{where}{error}") from error


def check_run_folder(run: RunFolder, resume: str) -> None:
    """A run that was begun is gone on with, or left alone; it is never written over."""
    held = [name for name in ("metrics.jsonl", "final_model.pth") if run.exists(name)]
    held += checkpoint.names(run)[:1]
    if held and not resume:
        raise TrainingError(
            f"{run} holds a run already ({', '.join(held)}): go on with it with "
            "--train.resume latest, or choose another --train.run-dir"
        )
