"""The methods of an evaluation, from the files that the user names."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from jobs.cli.weights import address_of, find_weights, network_of
from jobs.evaluation.config import EvaluateConfig
from taehv import distributed
from taehv.errors import TrainingError
from taehv.evaluation.linear import FILE, UNREADABLE, BlockShape, LinearLimit
from taehv.evaluation.lpips import Lpips
from taehv.evaluation.methods import (
    LinearMethod,
    Method,
    NetworkMethod,
    TeacherMethod,
    baseline_methods,
)
from taehv.evaluation.rate import int8_round_trip
from taehv.losses.teacher import Teacher, check_teacher
from taehv.model import TAEHV, build_model
from taehv.model.variants import ModelConfig
from taehv.precision import autocast_dtype


@dataclass
class Methods:
    """All that is scored, and what it needs for it."""

    network: NetworkMethod
    """The one that is judged."""
    all: list[Method]
    """With the network, which is the first."""
    lpips: Lpips | None
    device: torch.device
    precision: str
    """As in `EvaluateConfig.precision`."""
    weights: Path
    """The network's."""
    files: dict[str, str]
    """Weights of each method that has some, as others find them."""
    limit_note: str
    """Why there is no row of the linear limit; empty: there is one."""

    @property
    def multiple(self) -> int:
        """Height and width must be a multiple of this for all of them."""
        networks = [m.model for m in self.all if isinstance(m, NetworkMethod)]
        return math.lcm(8, *(network.space_downscale for network in networks))

    def move_to(self, device: torch.device) -> None:
        """Move all of it to a device, to work in the arithmetic that is chosen there."""
        self.device = device
        for method in self.all:
            if isinstance(method, NetworkMethod):
                method.model.to(device)
                method.dtype = autocast_dtype(self.precision, device)
            elif isinstance(method, TeacherMethod):
                method.teacher = method.teacher.to(device)
        if self.lpips:
            self.lpips = self.lpips.to(device)


def load_methods(config: EvaluateConfig) -> Methods:
    """Load everything. Raises TrainingError, naming the file, for what cannot be used."""
    # With Ray the networks go from here to the workers' devices.
    device = torch.device("cpu") if config.ray.wanted else distributed.device()
    dtype = autocast_dtype(config.precision, device)
    weights = find_weights(config.checkpoint)
    model = _build(dataclasses.replace(config.model, pretrained=str(weights)), device)
    network = NetworkMethod(model, "network", "network", dtype)
    int8 = NetworkMethod(model, "int8", "network, latents in int8", dtype, int8_round_trip)
    methods: list[Method] = [network, int8]
    files = {"network": address_of(weights, config.checkpoint)}
    others = [("baseline", config.baseline)] if config.baseline else []
    others += [(f"compare_{k}", path) for k, path in enumerate(config.compare)]
    for key, place in others:
        path = find_weights(place)
        # A run's weights are known by its folder.
        label = (
            f"started from {path.name}" if key == "baseline" else f"{path.parent.name}/{path.name}"
        )
        other = _build(network_of(path, config.model), device)
        methods.append(NetworkMethod(other, key, label, dtype))
        files[key] = address_of(path, place)
    if config.teacher.path:
        check_teacher(config.teacher.path)
        methods.append(TeacherMethod(Teacher.load(config.teacher, device)))
    limit, limit_note = linear_limit(weights, config.checkpoint, model)
    methods += [LinearMethod(limit)] if limit else []
    methods += baseline_methods()
    lpips = Lpips.load(config.lpips, device) if config.lpips else None
    return Methods(network, methods, lpips, device, config.precision, weights, files, limit_note)


def linear_limit(weights: Path, place: str, model: TAEHV) -> tuple[LinearLimit | None, str]:
    """That of the run that made the weights, or why there is none. Raises TrainingError for a file
    that cannot be read."""
    file = weights.parent / FILE
    if not file.is_file():
        return None, f"no row of the linear limit: there is no {FILE} beside {place}"
    try:
        limit = LinearLimit.load(file)
    except UNREADABLE as error:
        raise TrainingError(f"{file} cannot be read: {error}; remove it to do without") from error
    block = BlockShape(model.time_downscale, model.space_downscale)
    if limit.block != block or len(limit.basis) != model.latent_channels:
        return None, f"no row of the linear limit: {file} is of a network with other latents"
    return limit, ""


def _build(config: ModelConfig, device: torch.device) -> TAEHV:
    return build_model(config).to(device).eval().requires_grad_(False)
