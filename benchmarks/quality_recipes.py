"""Recipes by name, and what the latents of all of them must have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from jobs.cli.config import Config, read_yaml
from jobs.cli.errors import ConfigError
from taehv.evaluation.linear import BlockShape
from taehv.model import TAEHV

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = REPOSITORY / "benchmarks" / "recipes"


def read_recipe(name: str, base: Path) -> Config:
    """A file of RECIPES or any YAML file, laid over another. Raises ConfigError."""
    file = Path(name) if name.endswith(".yaml") else RECIPES / f"{name}.yaml"
    recipe = read_yaml(base, file)
    if recipe.train.stages:
        raise ConfigError(
            f"{file} has train.stages, but how many steps a time has is found out on the way"
        )
    return recipe


def latents_of(recipes: Mapping[str, Config]) -> tuple[BlockShape, int]:
    """What a latent of every recipe stands for, and its channels. Raises ValueError where they
    differ: codecs of different rates cannot be compared by their scores."""
    networks = {name: _untrained(config) for name, config in recipes.items()}
    found = {
        name: (BlockShape(network.time_downscale, network.space_downscale), network.latent_channels)
        for name, network in networks.items()
    }
    first, *others = found
    for name in others:
        if found[name] != found[first]:
            raise ValueError(
                f"the latents of {name} are not those of {first}: {found[name]} and {found[first]}"
            )
    return found[first]


def _untrained(config: Config) -> TAEHV:
    with torch.device("meta"):
        return TAEHV(config.model)
