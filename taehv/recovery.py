"""How a run that has failed goes on: from where, and with which settings."""

from __future__ import annotations

import dataclasses
import logging
import os
from datetime import datetime
from pathlib import Path

from taehv import checkpoint, distributed, journal
from taehv.config import TrainingConfig
from taehv.errors import DivergedError, MemoryShortageError, TrainingError
from taehv.run_folder import RunFolder
from taehv.state import TrainState

SET_ASIDE = "set_aside"
"""Folder in a run's, for what it had after the checkpoint to which it went back."""

log = logging.getLogger(__name__)


def go_back(run: RunFolder, address: str) -> None:
    """Make the checkpoint at `address` the newest, where it is the run's own: later ones, and a
    copy of the rows of metrics, are put into a folder of `set_aside/`.

    Another run's is what a run begins from, until it has checkpoints itself.

    Raises:
        TrainingError: where it is not whole.
        OSError: where the disk or the store refuses.
    """
    holder, name = checkpoint.located(address)
    fault = checkpoint.find_fault(holder.retrieve(name))
    if fault:
        raise TrainingError(f"--train.resume {address}: {fault}")
    held = checkpoint.names(run)
    if not _is_same_place(holder.address, run.address_of(checkpoint.FOLDER)):
        if held:
            log.warning("%s goes on from its own newest checkpoint, not from %s", run, address)
        return
    later = [entry for entry in held if entry > f"{checkpoint.FOLDER}/{name}"]
    if not later:
        return
    aside = f"{SET_ASIDE}/{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"
    journal.copy(run, aside)
    for entry in later:
        run.move(entry, f"{aside}/{Path(entry).name}")
    log.warning(
        "going back to %s: what %s saved after it, and a copy of metrics.jsonl, are in %s",
        address,
        run,
        run.address_of(aside),
    )


def _is_same_place(one: str, other: str) -> bool:
    """Whether two addresses, apart from how their store is opened, are the same folder."""
    one, other = (address.partition("?")[0].rstrip("/") for address in (one, other))
    if "://" in one or "://" in other:
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)


def last_good(run: RunFolder, state: TrainState, error: DivergedError) -> Path:
    """The checkpoint to roll back to, where the run may. A collective.

    Raises:
        TrainingError: where it may not.
    """
    train = state.config.train
    name = distributed.from_main(checkpoint.latest_valid(run) if distributed.is_main() else None)
    where = (
        f"the last good checkpoint is {run.address_of(name)}"
        if name
        else "there is no checkpoint yet"
    )
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


def with_halved_passes(config: TrainingConfig, error: MemoryShortageError) -> TrainingConfig:
    """The configuration to go on with after `error`; raised where there is none."""
    if not config.train.auto_micro_batch or not error.halved_pass:
        raise error
    log.warning(
        "%s. Going on from the last checkpoint with train.max_clips_per_pass %d",
        error.shortage,
        error.halved_pass,
    )
    train = dataclasses.replace(config.train, max_clips_per_pass=error.halved_pass)
    return dataclasses.replace(config, train=train)
