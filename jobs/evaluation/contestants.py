"""The methods of an evaluation, from the files that the user names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from jobs.evaluation.config import EvaluateConfig, find_weights, run_config
from taehv import distributed
from taehv.errors import TrainingError
from taehv.evaluation.lpips import Lpips
from taehv.evaluation.methods import Method, NetworkMethod, TeacherMethod, no_network
from taehv.evaluation.rate import int8_round_trip
from taehv.model import TAEHV, build_model
from taehv.shapes import expected_shapes, infer_config
from taehv.teacher import Teacher, check_teacher
from taehv.variants import ModelConfig
from taehv.weights import read_weights


@dataclass
class Contestants:
    """All that is scored, the network first, and what goes along."""

    network: NetworkMethod
    methods: list[Method]
    teacher: Teacher | None
    perceptual: Callable[[Tensor, Tensor], Tensor] | None
    device: torch.device
    files: dict[str, Path] = field(default_factory=dict)
    """Weights of each method that has some."""

    @property
    def multiple(self) -> int:
        """Height and width must be a multiple of this for all of them."""
        factors = [m.model.space_downscale for m in self.methods if isinstance(m, NetworkMethod)]
        return max(8, *factors)


def load(config: EvaluateConfig) -> Contestants:
    """Load everything. Raises TrainingError, naming the file, for what cannot be used."""
    device = distributed.device()
    dtype = _dtype(config.precision, device)
    weights = find_weights(config.checkpoint)
    model = _build(dataclasses.replace(config.model, pretrained=str(weights)), device)
    network = NetworkMethod(model, "network", "network", dtype)
    methods: list[Method] = [
        network,
        NetworkMethod(model, "int8", "network, latents in int8", dtype, int8_round_trip),
    ]
    files = {"network": weights}
    others = [("baseline", config.baseline)] if config.baseline else []
    others += [(f"compare_{k}", path) for k, path in enumerate(config.compare)]
    for key, place in others:
        path = find_weights(place)
        label = f"baseline: {path.name}" if key == "baseline" else _name(path)
        other = _build(_config_of(path, config.model), device)
        methods.append(NetworkMethod(other, key, label, dtype))
        files[key] = path
    teacher = None
    if config.teacher.path:
        check_teacher(config.teacher.path)
        teacher = Teacher.load(config.teacher, device)
        methods.append(TeacherMethod(teacher))
    methods += no_network()
    perceptual = Lpips.load(config.lpips, device) if config.lpips else None
    return Contestants(network, methods, teacher, perceptual, device, files)


def _name(weights: Path) -> str:
    """A run's weights are known by its folder."""
    return f"{weights.parent.name}/{weights.name}"


def _config_of(weights: Path, like: ModelConfig) -> ModelConfig:
    """The network of other weights: their own run's, or `like` where it fits, or from shapes."""
    run = run_config(weights)
    if run is not None:
        return dataclasses.replace(run.model, pretrained=str(weights))
    state = read_weights(weights)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    try:
        found = like if expected_shapes(like.architecture) == shapes else infer_config(state)
    except TrainingError as error:
        raise TrainingError(f"{weights}: {error}") from error
    return dataclasses.replace(found, pretrained=str(weights))


def _build(config: ModelConfig, device: torch.device) -> TAEHV:
    return build_model(config).to(device).eval().requires_grad_(False)


def _dtype(precision: str, device: torch.device) -> torch.dtype | None:
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if bf16 else None
