"""A run by the training loop alone: one process, no Ray, clips decoded where they are used."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.batches import iter_batches
from data_pipeline.clips import ClipSource, open_sources
from jobs.cli.config import Config
from taehv.interfaces import Hooks, TransientFailure
from taehv.run.run_folder import RunFolder
from taehv.training import train


class Clips:
    """`taehv.interfaces.Data` of this process."""

    def __init__(self, training: ClipSource, validation: ClipSource) -> None:
        self._training, self._validation = training, validation

    def training(
        self,
        schedule: Iterator[np.ndarray],
        transient_failures: Sequence[TransientFailure],
        stage: int = 0,
    ) -> Any:
        failures = frozenset(transient_failures)
        source = dataclasses.replace(self._training, transient_failures=failures)
        return iter_batches(source, schedule)

    def validation(self, schedule: Iterator[np.ndarray]) -> Any:
        return iter_batches(self._validation, schedule)


def train_here(config: Config, annotations: str, run_dir: Path) -> None:
    """What jobs/train.py would make of the config and these annotations."""
    data = dataclasses.replace(config.data, annotations=annotations)
    sources = open_sources(data, config.train.seed, config.train.global_batch_size)
    train(config, Clips(*sources), Hooks(), RunFolder(str(run_dir)))
