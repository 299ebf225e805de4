"""The configuration of an evaluation: that of the run, beneath options."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from pydantic import TypeAdapter, ValidationError

from data_pipeline.config import DataConfig
from data_pipeline.videos.storage import is_s3
from jobs.cli.config import load_yaml
from jobs.cli.errors import ConfigError
from jobs.cli.weights import checkpoint_of, find_weights, names_other_videos, run_config
from jobs.cluster.fan_out import RayConfig, check_lasting
from jobs.tracking.config import TrackingConfig
from taehv.evaluation.verdict import Thresholds
from taehv.losses.teacher import TeacherConfig
from taehv.model.shapes import infer_config
from taehv.model.variants import ModelConfig
from taehv.model.weights import read_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything that an evaluation is configured by.

    Sections that a run's `config.yaml` beside the checkpoint has are taken from there; options
    change them.
    """

    checkpoint: str = ""
    """Weights to judge, .pth or .safetensors in the public keys, or a run's folder; also on
    s3://."""
    output_dir: str = ""
    """Folder for the results. Empty: `evaluation`, beside the checkpoint."""
    overwrite: bool = False
    """Replace the results that the folder holds."""

    num_samples: int = 24
    """Most held-out videos that are scored; 0: all."""
    clips_per_video: int = 3
    """Fixed clips of each, at even distances."""
    clips: Literal["native", "shrunk"] = "native"
    """native: windows of the video's own pixels, spread over the frame. shrunk: the largest crop,
    scaled down to data.height and data.width, of data.num_frames frames."""
    window_height: int = 256
    """Rows of a native window, in pixels; cut down to what the video has."""
    window_width: int = 256
    """Columns of a native window."""
    window_frames: int = 0
    """Frames of a native window; of a shorter video fewer. 0: data.num_frames, at least 9."""
    whole_frames: bool = False
    """Score every frame of a video in its own size, in constant memory, instead of clips."""
    frames: int = 0
    """Most frames of a video with --whole-frames, from its start; 0: all."""
    split: Literal["validation", "all"] = "validation"
    """validation: the videos that the run kept out of training. all: every video of the list, for
    a list that is a test set of its own."""
    max_bad_fraction: float = 0.2
    """Part of the videos that may turn out unusable before the evaluation is refused."""

    baseline: str = ""
    """Weights that the run started from; scored on the same clips."""
    compare: tuple[str, ...] = ()
    """More weights to be scored on the same clips."""
    lpips: str = ""
    """Weights of LPIPS (AlexNet): a state dict of `lpips.LPIPS(net="alex")`. Empty: no LPIPS."""

    fail_on_verdict: bool = False
    """Exit with 3 where the verdict is a failure."""
    thresholds: str = ""
    """YAML file of limits, by the names in `taehv.evaluation.verdict.Thresholds`; what it leaves
    out holds."""

    num_videos: int = 3
    """Samples that comparison videos and latent pictures are written of."""
    worst_clips: int = 6
    """Worst clips that the report shows."""
    register_as: str = "taehv"
    """Model in MLflow's registry that these weights become a version of; empty: none."""

    seed: int = 0
    """Of the split, and of the videos that are chosen; the run's own by default."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks; auto: bf16 on a GPU, fp32 on a CPU."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        counts = ("num_samples", "num_videos", "worst_clips", "seed", "window_frames", "frames")
        for name in counts:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it cannot be negative")
        if self.clips_per_video < 1:
            raise ValueError(f"clips_per_video is {self.clips_per_video}: it must be at least 1")


def parse(arguments: Sequence[str], description: str) -> EvaluateConfig:
    """The configuration that a command line asks for.

    Raises TrainingError where the checkpoint cannot be read; ConfigError naming the key or the
    file; SystemExit with 2 for an option that does not exist, with 0 after --help.
    """
    arguments = list(arguments)
    checkpoint = checkpoint_of(arguments)
    defaults = _from_run(find_weights(checkpoint), arguments) if checkpoint else EvaluateConfig()
    try:
        config = tyro.cli(EvaluateConfig, args=arguments, default=defaults, description=description)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not config.checkpoint:
        raise ConfigError("--checkpoint is missing: the weights to judge, or a run's folder")
    if is_s3(config.checkpoint) and not config.output_dir:
        raise ConfigError("--output-dir is missing: a folder for the results, on this machine")
    if config.output_dir:
        check_lasting("--output-dir", config.output_dir)
    return config


def read_limits(config: EvaluateConfig) -> Thresholds:
    """The limits of `--thresholds`, those of the gradient norm for the loss weights of the run that
    made the weights, where it is known. Raises ConfigError."""
    path = config.thresholds
    content = (load_yaml(f"--thresholds {path}", Path(path)) if path else None) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"--thresholds {path}: expected lines such as `psnr_success: 25`")
    known = [f.name for f in dataclasses.fields(Thresholds)]
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"--thresholds {path}: there is no limit {key}; did you mean {near}?")
    try:
        limits = TypeAdapter(Thresholds).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--thresholds {path}, {first['loc'][0]}: {first['msg']}") from error
    run = run_config(find_weights(config.checkpoint))
    return limits.with_gradient_scale(run.loss.gradient_scale) if run else limits


def _from_run(weights: Path, arguments: Sequence[str]) -> EvaluateConfig:
    """Defaults for weights: the run's, where there is one; else the network that they fit."""
    run = run_config(weights)
    if run is None:
        return EvaluateConfig(model=infer_config(read_weights(weights)))
    started_from, data = run.model.pretrained, run.data
    if started_from and not is_s3(started_from) and not Path(started_from).is_file():
        log.warning(
            "no row of the weights that the run started from: %s is not there any more; "
            "--baseline names another place",
            started_from,
        )
        started_from = ""
    if names_other_videos(arguments, run):
        data = dataclasses.replace(data, root="", validation_annotations="", split_by="")
    return EvaluateConfig(
        seed=run.train.seed,
        precision=run.train.precision,
        data=data,
        model=dataclasses.replace(run.model, pretrained=""),
        teacher=run.teacher,
        tracking=run.tracking,
        baseline=started_from,
    )
