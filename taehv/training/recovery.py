"""Which checkpoint a run goes on from, after a failure or a stage, and with which settings."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from taehv import distributed
from taehv.errors import DivergedError, MemoryShortageError, TrainingError
from taehv.run import checkpoint
from taehv.run.run_folder import RunFolder, resume_options
from taehv.training.config import TrainingConfig
from taehv.training.state import TrainState

log = logging.getLogger(__name__)


def rollback_target(run: RunFolder, state: TrainState, error: DivergedError) -> Path:
    """The checkpoint to roll back to. A collective. Raises TrainingError if there is none, or the
    configuration allows no (further) rollback."""
    train = state.config.train
    name = distributed.from_main(checkpoint.latest_valid(run) if distributed.is_main() else None)
    where = "there is no checkpoint yet"
    if name:
        where = f"the last good checkpoint is {run.address_of(name)}"
    if train.on_divergence != "rollback" or name is None:
        raise TrainingError(f"{error}; {where}") from error
    if state.rollbacks >= train.max_rollbacks:
        raise TrainingError(
            f"{error}, after {state.rollbacks} rollbacks (train.max_rollbacks); {where}"
        ) from error
    if distributed.is_main():
        log.warning(
            "%s. Rolling back to %s, learning rate at 1/%d (rollback %d of %d)",
            error,
            name,
            round(2 / state.learning_rate_scale),
            state.rollbacks + 1,
            train.max_rollbacks,
        )
    return run.retrieve(name)


def end_of_stage(run: RunFolder, state: TrainState) -> Path:
    """The checkpoint that a stage has ended with. A collective. Raises TrainingError if it could
    not be written."""
    name = distributed.from_main(checkpoint.latest_valid(run) if distributed.is_main() else None)
    if name != checkpoint.name_of(state.step):
        raise TrainingError(
            f"stage {state.stage + 1} of train.stages has ended at step {state.step}, but the "
            f"checkpoint with which the next one begins could not be written: make room in, or see "
            f"to, {run}, and go on with {resume_options(run.address)}"
        )
    return run.retrieve(name)


def halve_passes(config: TrainingConfig, error: MemoryShortageError) -> TrainingConfig:
    """The configuration with half as many clips per pass; raises `error` if it allows none."""
    if not config.train.auto_micro_batch or not error.halved_pass:
        raise error
    log.warning(
        "%s. Going on from the last checkpoint with train.max_clips_per_pass %d",
        error.shortage,
        error.halved_pass,
    )
    train = dataclasses.replace(config.train, max_clips_per_pass=error.halved_pass)
    return dataclasses.replace(config, train=train)
