"""The options of the job, and how they are read from a command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import tyro

from data_pipeline.videos.index import folder_of
from data_pipeline.videos.storage import absolute
from jobs.cli.errors import ConfigError
from jobs.cli.weights import checkpoint_of, find_weights, names_other_videos, network_of, run_config
from jobs.cluster.fan_out import RayConfig, check_lasting
from taehv.model.variants import ModelConfig


@dataclass(frozen=True)
class VideosConfig:
    """Which videos, and what is taken of them."""

    annotations: str = ""
    """A list of videos or a folder of them, in any of the forms that a training takes."""
    root: str = ""
    """Folder that the relative paths start at; empty: the folder that the list lies in, or is."""
    height: int = 0
    """Rows that frames are scaled to, after the largest crop of that shape in their middle.
    0, for height and width: frames keep their size, cut about the middle to a multiple of what
    the network needs (8 pixels for most)."""
    width: int = 0
    """Columns; see height."""
    stream: int = -1
    """Which of a file's video streams is encoded, as in training: the run's by default."""
    deinterlace: bool = False
    """Whether interlaced frames are rebuilt, as in training: the run's by default."""
    max_bad_fraction: float = 0.05
    """Part of the videos that may turn out unusable; beyond it the job stops."""
    decode_seconds: float = 60.0
    """Time limit for a piece of a video (8 MB of frames), after which its decoder is taken for
    hung."""

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 0 or bool(self.height) != bool(self.width):
            raise ValueError(
                f"data.height is {self.height} and data.width {self.width}: give both, or neither"
            )
        if self.stream < -1:
            raise ValueError(f"data.stream is {self.stream}: -1 for the best, or a number from 0")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction is {self.max_bad_fraction}: 0 to 1")
        if not self.decode_seconds > 0:
            raise ValueError(f"data.decode_seconds is {self.decode_seconds}: it must be above 0")


@dataclass(frozen=True)
class EncodeConfig:
    """All options of the job."""

    checkpoint: str = ""
    """Weights, .pth or .safetensors in the public keys, or a run's folder; also on s3://."""
    output_dir: str = ""
    """Folder for the latents, or, with --decode, for the videos; also on s3://."""

    decode: str = ""
    """Go back: a folder of latents, all of which become videos."""
    decode_to: Literal["mp4", "png"] = "mp4"
    """H.264 videos, or a folder of lossless pictures for each."""

    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """What latents are kept in."""
    videos_per_shard: int = 0
    """Videos of one shard, the work of one worker at a time and what a job that was killed may have
    to do again. 0: a 64th of the list, at least 1 and at most 64."""
    retry_unusable: bool = False
    """Make the shards anew whose videos could not all be used."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto: bf16 on a GPU, fp32 on a CPU."""

    data: VideosConfig = field(default_factory=VideosConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    ray: RayConfig = field(default_factory=lambda: RayConfig(use="yes"))

    def __post_init__(self) -> None:
        if self.videos_per_shard < 0:
            raise ValueError(f"videos_per_shard is {self.videos_per_shard}: it cannot be negative")

    def shard_size(self, videos: int) -> int:
        """Videos of one shard of a list of so many."""
        return self.videos_per_shard or min(max(videos // 64, 1), 64)


def parse(arguments: Sequence[str], description: str) -> EncodeConfig:
    """The configuration that a command line asks for, beneath it the run's that made the weights.

    Raises TrainingError where the checkpoint cannot be read; ConfigError naming the option;
    SystemExit with 2 for an option that does not exist, with 0 after --help.
    """
    arguments = list(arguments)
    checkpoint = checkpoint_of(arguments)
    defaults = EncodeConfig()
    if checkpoint:
        weights = find_weights(checkpoint)
        run = run_config(weights)
        data = VideosConfig()
        if run:
            names = ("annotations", "root", "stream", "deinterlace")
            data = VideosConfig(**{name: getattr(run.data, name) for name in names})
            if names_other_videos(arguments, run):
                data = dataclasses.replace(data, root="")
        model = dataclasses.replace(network_of(weights), pretrained="")
        defaults = EncodeConfig(data=data, model=model)
    try:
        config = tyro.cli(EncodeConfig, args=arguments, default=defaults, description=description)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not config.checkpoint:
        raise ConfigError("--checkpoint is missing: the weights to encode with, or a run's folder")
    if not config.output_dir:
        raise ConfigError("--output-dir is missing: a folder for the results")
    if not config.decode and not config.data.annotations:
        raise ConfigError(
            "--data.annotations is missing: the videos to encode, and no config.yaml of a run "
            "beside the checkpoint names any"
        )
    check_lasting("--output-dir", config.output_dir)
    # Workers start elsewhere, maybe on other machines.
    data = config.data
    annotations = absolute(data.annotations) if data.annotations else ""
    root = absolute(data.root) if data.root else folder_of(annotations) if annotations else ""
    return dataclasses.replace(
        config,
        output_dir=absolute(config.output_dir),
        decode=absolute(config.decode) if config.decode else "",
        data=dataclasses.replace(data, annotations=annotations, root=root),
    )
