"""The weights that a user names: where they lie, the run that made them, the network they fit."""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from data_pipeline.videos import storage
from jobs.cli.config import Config, read_yaml
from jobs.cli.console import take_option
from taehv.errors import TrainingError
from taehv.evaluation.linear import FILE as LINEAR_LIMIT
from taehv.model.shapes import expected_shapes, infer_config
from taehv.model.variants import ModelConfig
from taehv.model.weights import read_weights
from taehv.run.run_folder import RunFolder

WEIGHTS = ("final_model.safetensors", "final_model.pth")

BESIDE = ("config.yaml", "mlflow.json", "metrics.jsonl", LINEAR_LIMIT)
"""What a run has beside its weights that tells about them."""


def find_weights(place: str) -> Path:
    """The weights file that a path means: of a folder, a run's final weights.

    What lies on `s3://` is brought here first, with what lies `BESIDE` it, for as long as this
    process lives. Raises TrainingError where it cannot be had.
    """
    if storage.is_s3(place):
        return _copy_of(place)[1]
    path = Path(place)
    if path.is_dir():
        return next((path / name for name in WEIGHTS if (path / name).is_file()), path / WEIGHTS[0])
    return path


def checkpoint_of(arguments: Sequence[str]) -> str:
    """What --checkpoint is given on a command line that has not been parsed; empty: nothing."""
    return take_option(arguments, "--checkpoint")[0] or ""


def names_other_videos(arguments: Sequence[str], run: Config) -> bool:
    """Whether a command line that has not been parsed names another list of videos than a run's:
    the run's root, say, is that of its own list."""
    named = take_option(arguments, "--data.annotations")[0]
    return bool(named) and storage.absolute(str(named)) != storage.absolute(run.data.annotations)


def address_of(weights: Path, place: str) -> str:
    """Where weights that were found at `place` lie, for others to read."""
    return place if storage.is_s3(place) else str(weights.absolute())


def digest_of(weights: Path) -> str:
    """The SHA-256 of the file."""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_config(weights: Path) -> Config | None:
    """The configuration of the run that made the weights, where it lies beside them."""
    file = weights.parent / "config.yaml"
    return read_yaml(file) if file.is_file() else None


def network_of(weights: Path, like: ModelConfig | None = None) -> ModelConfig:
    """The network of some weights: their own run's, or `like` where it fits, or from shapes.

    Raises TrainingError, naming the file.
    """
    run = run_config(weights)
    if run is not None:
        return dataclasses.replace(run.model, pretrained=str(weights))
    state = read_weights(weights)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    try:
        fits = like is not None and expected_shapes(like.architecture) == shapes
        found = like if like is not None and fits else infer_config(state)
    except TrainingError as error:
        raise TrainingError(f"{weights}: {error}") from error
    return dataclasses.replace(found, pretrained=str(weights))


@lru_cache
def _copy_of(place: str) -> tuple[RunFolder, Path]:
    """The folder, whose copy lives as long as it, and the weights in it."""
    path, question, options = place.partition("?")
    is_file = path.endswith((".pth", ".safetensors"))
    try:
        folder = RunFolder((posixpath.dirname(path) if is_file else path) + question + options)
        names = [posixpath.basename(path)] if is_file else [*WEIGHTS]
        found = next((name for name in names if folder.exists(name)), None)
        if found is None:
            raise TrainingError(f"{place}: there is no {' or '.join(names)}")
        for name in BESIDE:
            folder.retrieve(name)
        return folder, folder.retrieve(found)
    except OSError as error:
        raise TrainingError(f"{place} cannot be read: {error}") from error
