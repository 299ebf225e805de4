"""One video through a network: `python jobs/reconstruct.py IN.mp4 --checkpoint runs/a`."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tyro

from data_pipeline.decoding.whole_video import WholeRequest
from data_pipeline.errors import DataError, UnusableVideoError
from data_pipeline.videos.storage import absolute, is_s3, without_options
from jobs.cli.console import BAD_CONFIG, DONE, FAILED, log_plainly, refuse, stop_signals_to
from jobs.cli.errors import ConfigError
from jobs.cli.paths import check_replaceable
from jobs.cli.weights import checkpoint_of, find_weights, network_of, run_config
from jobs.evaluation.methods import linear_limit
from jobs.evaluation.one_video import (
    RECONSTRUCTION,
    SIDE_BY_SIDE,
    ReconstructedVideo,
    reconstruct,
)
from jobs.evaluation.reading import VideoReader
from jobs.evaluation.table import scores_table
from taehv import distributed
from taehv.atomic import write_atomically
from taehv.credentials import hide_credentials, in_all_texts
from taehv.errors import TrainingError
from taehv.evaluation.lpips import Lpips
from taehv.evaluation.methods import LinearMethod, Method, NetworkMethod, baseline_methods
from taehv.model import ModelConfig, build_model
from taehv.precision import autocast_dtype

FIGURES = "figures.json"


@dataclass(frozen=True)
class ReconstructConfig:
    """All options of the job."""

    video: tyro.conf.Positional[str] = ""
    """A video file; also on s3://."""
    checkpoint: str = ""
    """Weights, .pth or .safetensors in the public keys, or a run's folder; also on s3://."""
    output_dir: str = ""
    """Folder for the results. Empty: one beside the video, named after it; for a video on s3://, in
    the working folder."""
    overwrite: bool = False
    """Replace the results that the folder holds."""
    frames: int = 0
    """Most frames, from the video's start; 0: all."""
    stream: int = -1
    """Which of the file's video streams, as in training; -1: the best. The run's by default."""
    deinterlace: bool = False
    """Whether interlaced frames are rebuilt, as in training: the run's by default."""
    decode_seconds: float = 60.0
    """Time limit for a piece of the video (8 MB of frames), after which its decoder is taken for
    hung."""
    lpips: str = ""
    """Weights of LPIPS (AlexNet): a state dict of `lpips.LPIPS(net="alex")`. Empty: no LPIPS."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto: bf16 on a GPU, fp32 on a CPU."""
    model: ModelConfig = field(default_factory=ModelConfig)


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit code is that of the project's contract (0, 1, 2, 130, 143)."""
    log_plainly()
    try:
        return run(_parse(sys.argv[1:] if arguments is None else arguments))
    except ConfigError as error:
        return refuse(error, BAD_CONFIG)
    except (TrainingError, DataError, OSError) as error:
        return refuse(error, FAILED)
    except KeyboardInterrupt:
        print("stopped before there was a result", file=sys.stderr)
        return 130


def run(config: ReconstructConfig) -> int:
    """Check, reconstruct, and say what came of it. Ctrl-C ends the videos with the next frame, and
    a second one at once, without them."""
    folder = _output_folder(config)
    device = distributed.device()
    weights = str(find_weights(config.checkpoint))
    model = build_model(dataclasses.replace(config.model, pretrained=weights))
    dtype = autocast_dtype(config.precision, device)
    network = NetworkMethod(model.to(device).requires_grad_(False), "network", "network", dtype)
    lpips = Lpips.load(config.lpips, device) if config.lpips else None
    # The baselines work on blocks of 8x8.
    request = WholeRequest(
        absolute(config.video),
        max(8, model.space_downscale),
        limit=config.frames,
        stream=config.stream,
        deinterlace=config.deinterlace,
    )
    stopped: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    limit, _ = linear_limit(Path(weights), config.checkpoint, model)
    others: list[Method] = [LinearMethod(limit)] if limit else []
    others += baseline_methods()
    begun = time.perf_counter()
    with closing(VideoReader(config.decode_seconds)) as read, stop_signals_to(stop):
        try:
            result = reconstruct(
                request,
                network,
                others,
                read,
                device,
                folder,
                lpips=lpips,
                is_stopped=lambda: bool(stopped),
            )
        except UnusableVideoError as error:
            raise DataError(f"{config.video}: {error}") from error
    seconds = time.perf_counter() - begun
    _write_figures(folder / FIGURES, config, result)
    methods: list[Method] = [network, *others]
    labels = {method.key: method.label for method in methods}
    print(_summary(config, result, labels, seconds))
    for what, name in (
        ("reconstruction", RECONSTRUCTION),
        ("side by side", SIDE_BY_SIDE),
        ("figures", FIGURES),
    ):
        print(f"{what:<14} {folder / name}")
    if stopped:
        print("stopped: the files hold what was done by then", file=sys.stderr)
        return 128 + int(stopped[0])
    return DONE


def _summary(
    config: ReconstructConfig, result: ReconstructedVideo, labels: dict[str, str], seconds: float
) -> str:
    """What was reconstructed, how well, and where it is worst."""
    facts, worst = result.facts, int(np.argmin(result.psnr))
    cut = (facts.height, facts.width) != (result.height, result.width)
    lines = [
        f"{_name(config)}: {result.frames} frames of {result.height}x{result.width}"
        f"{f', cut from {facts.height}x{facts.width}' if cut else ''}, {facts.fps:.4g} a second; "
        f"{seconds:.0f} s ({result.frames / seconds:.3g} frames/s, reading and writing included)",
        *result.lost,
        "",
        scores_table("method", {labels[key]: found for key, found in result.scores.items()}),
        "",
        f"worst frame: {worst} of the reconstruction, {result.psnr[worst]:.2f} dB",
        "",
    ]
    return "\n".join(lines)


def _write_figures(file: Path, config: ReconstructConfig, result: ReconstructedVideo) -> None:
    figures = {
        "video": absolute(config.video),
        "checkpoint": config.checkpoint,
        "frames": result.frames,
        "height": result.height,
        "width": result.width,
        "fps": result.facts.fps,
        "lost": result.lost,
        "scores": {
            # JSON has no NaN: a score that this video lacks.
            key: {name: value if np.isfinite(value) else None for name, value in found.items()}
            for key, found in result.scores.items()
        },
        "psnr": [value if np.isfinite(value) else None for value in result.psnr],
    }
    text = json.dumps(in_all_texts(hide_credentials, figures), indent=1, allow_nan=False)
    write_atomically(file, text + "\n")


def _output_folder(config: ReconstructConfig) -> Path:
    """The output folder, which need not be there. Raises TrainingError where it holds results."""
    beside = Path() if is_s3(config.video) else Path(config.video).parent
    folder = Path(config.output_dir or beside / f"{Path(_name(config)).stem}_reconstructed")
    check_replaceable(folder, (RECONSTRUCTION, SIDE_BY_SIDE, FIGURES), config.overwrite)
    if not is_s3(config.video) and not Path(config.video).is_file():
        raise DataError(f"{config.video}: there is no such video file")
    return folder


def _name(config: ReconstructConfig) -> str:
    """The video's file name."""
    return Path(without_options(config.video)).name


def _parse(arguments: list[str]) -> ReconstructConfig:
    checkpoint = checkpoint_of(arguments)
    defaults = ReconstructConfig()
    if checkpoint:
        weights = find_weights(checkpoint)
        model = dataclasses.replace(network_of(weights), pretrained="")
        run = run_config(weights)
        defaults = ReconstructConfig(model=model)
        if run:
            defaults = dataclasses.replace(
                defaults, stream=run.data.stream, deinterlace=run.data.deinterlace
            )
    config = tyro.cli(
        ReconstructConfig, args=arguments, default=defaults, description=(__doc__ or "").strip()
    )
    if not config.video:
        raise ConfigError("the video is missing: python jobs/reconstruct.py IN.mp4 --checkpoint ..")
    if not config.checkpoint:
        raise ConfigError("--checkpoint is missing: weights, or a run's folder")
    if config.frames < 0:
        raise ConfigError(f"--frames is {config.frames}: it cannot be negative")
    if not config.decode_seconds > 0:
        raise ConfigError(f"--decode-seconds is {config.decode_seconds}: it must be above 0")
    return config


if __name__ == "__main__":
    sys.exit(main())
