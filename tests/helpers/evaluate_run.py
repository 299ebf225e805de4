"""Evaluations small enough for a test: an untrained network and a few short videos."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs import evaluate
from taehv.model import TAEHV, ModelConfig, build_model
from taehv.model.weights import export_weights
from tests.helpers.data_videos import write_dataset, write_video

SMALL = ModelConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8))
CLIPS = ["--clips", "shrunk", "--data.height", "32", "--data.width", "48", "--data.num-frames", "5"]


def export_small(folder: Path, seed: int = 0, config: ModelConfig = SMALL) -> Path:
    """Weights of an untrained network, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config)
    folder.mkdir(parents=True, exist_ok=True)
    export_weights(model.state_dict(), folder / "w.pth", folder / "w.safetensors")
    return folder / "w.pth"


def export_pytorch_start(folder: Path) -> Path:
    """Weights of PyTorch's own start: that of training decodes a latent to four frames that are
    alike. The last layer is enlarged, so that a change of the latents shows in the frames."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = TAEHV(SMALL).state_dict()
    state["decoder.22.weight"] *= 30
    export_weights(state, folder / "w.pth", folder / "w.safetensors")
    return folder / "w.pth"


def export_breaking(folder: Path) -> Path:
    """Weights that give black for black videos, exactly, and NaN for all others.

    The first convolution brings whatever is not black beyond float32's range, where infinities of
    both signs meet; the last one gives black for all that is finite.
    """
    weights = torch.load(export_small(folder), weights_only=True)
    encoder = sorted((k for k in weights if k.startswith("encoder")), key=_place)
    decoder = sorted((k for k in weights if k.startswith("decoder")), key=_place)
    for name in encoder:
        if name.endswith("bias"):
            weights[name].zero_()
    weights[encoder[0]].fill_(3e38)
    last = decoder[-1].rpartition(".")[0]
    for name in (f"{last}.weight", f"{last}.bias"):
        if name in weights:
            weights[name].zero_()
    export_weights(weights, folder / "w.pth", folder / "w.safetensors")
    return folder / "w.pth"


def _place(name: str) -> int:
    return int(name.split(".")[1])


def make_black(videos: Sequence[Path], frames: int = 14) -> None:
    """Write black over these videos."""
    for path in videos:
        write_video(path, np.zeros((frames, 48, 64, 3), np.uint8))


def make_videos(folder: Path, count: int = 12, frames: int = 14) -> Path:
    """Drifting colours; the annotation file."""
    return write_dataset(folder, count, frames)


def words(checkpoint: str, annotations: Path, output: Path, *more: str) -> list[str]:
    """The command line of an evaluation on all videos of the list."""
    given = (
        f"--checkpoint {checkpoint} --data.annotations {annotations} --output-dir {output}"
        " --split all --clips-per-video 2 --num-videos 1 --worst-clips 3 --tracking.no-enabled"
    )
    return [*given.split(), *CLIPS, *more]


def run(weights: Path, annotations: Path, output: Path, *more: str) -> int:
    """`python jobs/evaluate.py` in this process; the exit code."""
    return evaluate.main(words(str(weights), annotations, output, *more))


def read_metrics(output: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return loaded
