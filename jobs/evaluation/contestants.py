"""The methods of an evaluation, from the files that the user names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch

from jobs.cli.weights import address_of, find_weights, network_of
from jobs.evaluation.config import EvaluateConfig
from taehv.evaluation.lpips import Lpips
from taehv.evaluation.methods import Method, NetworkMethod, TeacherMethod, no_network
from taehv.evaluation.rate import int8_round_trip
from taehv.losses.teacher import Teacher, check_teacher
from taehv.model import TAEHV, build_model
from taehv.model.variants import ModelConfig


@dataclass
class Contestants:
    """All that is scored, the network first, and what goes along."""

    network: NetworkMethod
    methods: list[Method]
    perceptual: Lpips | None
    device: torch.device
    precision: str
    """As in `EvaluateConfig.precision`."""
    weights: Path
    """The network's."""
    files: dict[str, str] = field(default_factory=dict)
    """Weights of each method that has some, as others find them."""

    @property
    def multiple(self) -> int:
        """Height and width must be a multiple of this for all of them."""
        factors = [m.model.space_downscale for m in self.methods if isinstance(m, NetworkMethod)]
        return max(8, *factors)

    def on(self, device: torch.device) -> Contestants:
        """All of it on another device, in the arithmetic that is chosen there."""
        if device == self.device:
            return self
        dtype = _dtype(self.precision, device)
        methods: list[Method] = []
        for method in self.methods:
            if isinstance(method, NetworkMethod):
                model = method.model.to(device)
                methods.append(
                    NetworkMethod(model, method.key, method.label, dtype, method.through)
                )
            elif isinstance(method, TeacherMethod):
                methods.append(TeacherMethod(method.teacher.to(device)))
            else:
                methods.append(method)
        network = methods[0]
        assert isinstance(network, NetworkMethod)
        return dataclasses.replace(
            self,
            network=network,
            methods=methods,
            perceptual=self.perceptual.to(device) if self.perceptual else None,
            device=device,
        )


def load(config: EvaluateConfig, device: torch.device) -> Contestants:
    """Load everything. Raises TrainingError, naming the file, for what cannot be used."""
    dtype = _dtype(config.precision, device)
    weights = find_weights(config.checkpoint)
    model = _build(dataclasses.replace(config.model, pretrained=str(weights)), device)
    network = NetworkMethod(model, "network", "network", dtype)
    methods: list[Method] = [
        network,
        NetworkMethod(model, "int8", "network, latents in int8", dtype, int8_round_trip),
    ]
    files = {"network": address_of(weights, config.checkpoint)}
    others = [("baseline", config.baseline)] if config.baseline else []
    others += [(f"compare_{k}", path) for k, path in enumerate(config.compare)]
    for key, place in others:
        path = find_weights(place)
        label = f"baseline: {path.name}" if key == "baseline" else _name(path)
        other = _build(network_of(path, config.model), device)
        methods.append(NetworkMethod(other, key, label, dtype))
        files[key] = address_of(path, place)
    if config.teacher.path:
        check_teacher(config.teacher.path)
        methods.append(TeacherMethod(Teacher.load(config.teacher, device)))
    methods += no_network()
    perceptual = Lpips.load(config.lpips, device) if config.lpips else None
    return Contestants(network, methods, perceptual, device, config.precision, weights, files)


def _name(weights: Path) -> str:
    """A run's weights are known by its folder."""
    return f"{weights.parent.name}/{weights.name}"


def _build(config: ModelConfig, device: torch.device) -> TAEHV:
    return build_model(config).to(device).eval().requires_grad_(False)


def _dtype(precision: str, device: torch.device) -> torch.dtype | None:
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if bf16 else None
