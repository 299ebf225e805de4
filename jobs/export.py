"""Weights to programs of torch.export: `python jobs/export.py --help` lists every option."""

from __future__ import annotations

import dataclasses
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

# Run as a script, Python looks for imports in jobs/ alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from jobs.cli.console import BAD_CONFIG, DONE, FAILED, log_plainly, refuse
from jobs.cli.errors import ConfigError
from jobs.cli.paths import check_replaceable
from jobs.cli.weights import checkpoint_of, find_weights, network_of
from taehv.errors import TrainingError
from taehv.model import ModelConfig, build_model
from taehv.model.export import TOLERANCE, export_programs

log = logging.getLogger("jobs.export")


@dataclass(frozen=True)
class ExportConfig:
    """All options of the job."""

    checkpoint: str = ""
    """Weights, .pth or .safetensors in the public keys, or a run's folder; also on s3://."""
    output_dir: str = ""
    """Folder for encoder.pt2 and decoder.pt2."""
    overwrite: bool = False
    """Replace the programs that the folder holds."""
    batch: int = 1
    """Clips at once."""
    num_frames: int = 9
    """Frames of a clip; 4k + 1 come back whole, for taecvx 8k + 1."""
    height: int = 128
    """Rows of a clip, in pixels."""
    width: int = 128
    """Columns of a clip, in pixels."""
    tolerance: float = TOLERANCE
    """Largest difference to the network that is accepted."""
    model: ModelConfig = field(default_factory=ModelConfig)


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit code is that of the project's contract (0, 1, 2)."""
    log_plainly()
    try:
        return run(_parse(sys.argv[1:] if arguments is None else arguments))
    except ConfigError as error:
        return refuse(error, BAD_CONFIG)
    except (TrainingError, OSError) as error:
        return refuse(error, FAILED)


def run(config: ExportConfig) -> int:
    """Export, check, and say what was written."""
    folder = Path(config.output_dir)
    check_replaceable(folder, ("encoder.pt2", "decoder.pt2"), config.overwrite)
    weights = str(find_weights(config.checkpoint))
    model = build_model(dataclasses.replace(config.model, pretrained=weights))
    if model.alignment.learns_another_rule(config.num_frames):
        whole = model.alignment.padded_length(config.num_frames)
        log.warning(
            "%d frames are an even number of latents, of which %s drops no frame: where it was "
            "trained on clips of an odd number, as by default, each frame comes 3 late, after 3 of "
            "nothing. Take --num-frames %d",
            config.num_frames,
            config.model.variant,
            whole,
        )
    shape = (config.batch, config.num_frames, config.height, config.width)
    try:
        programs = export_programs(model, shape, folder, config.tolerance)
    except ValueError as error:
        raise ConfigError(f"no clip of this shape can be encoded: {error}") from error
    for program in programs:
        takes, gives = ("x".join(map(str, size)) for size in (program.takes, program.gives))
        print(
            f"{program.path}  {takes} -> {gives}  largest difference to the network "
            f"{program.error:.2g} (at most {config.tolerance:g})"
        )
    return DONE


def _parse(arguments: list[str]) -> ExportConfig:
    checkpoint = checkpoint_of(arguments)
    defaults = ExportConfig()
    if checkpoint:
        model = dataclasses.replace(network_of(find_weights(checkpoint)), pretrained="")
        defaults = ExportConfig(model=model)
    config = tyro.cli(
        ExportConfig, args=arguments, default=defaults, description=(__doc__ or "").strip()
    )
    for name in ("checkpoint", "output_dir"):
        if not getattr(config, name):
            raise ConfigError(f"--{name.replace('_', '-')} is missing")
    return config


if __name__ == "__main__":
    sys.exit(main())
