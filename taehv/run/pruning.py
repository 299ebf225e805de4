"""Removes old checkpoints: all but the newest few of a run's history, and the best.

Only the main worker calls these functions, while no worker writes a checkpoint.
"""

from __future__ import annotations

import logging
from pathlib import Path

from taehv.run import checkpoint
from taehv.run.resume import new_set_aside_folder
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)


def prune(run: RunFolder, keep: int, newest: int, best_step: int | None) -> None:
    """Remove all checkpoints but the `keep` newest valid ones and that of `best_step`.

    Checkpoints are valid by their manifests and file sizes. Nothing is removed unless that of the
    step `newest`, which was just written, is valid.

    Raises OSError if the disk or the store cannot be read; a failed removal is a warning.
    """
    last = checkpoint.name_of(newest)
    fault = checkpoint.find_size_fault(run, last)
    if fault:
        log.warning("no older checkpoint is removed: %s: %s", run.address_of(last), fault)
        return
    kept = [last]
    older = [name for name in checkpoint.names(run) if name < last]
    for name in older:
        if len(kept) < keep and not checkpoint.find_size_fault(run, name):
            kept.append(name)
    if best_step is not None:
        kept.append(checkpoint.name_of(best_step))
    for name in older:
        if name not in kept:
            try:
                checkpoint.remove(run, name)
            except OSError as error:
                _warn(run, name, error)


def tidy(run: RunFolder, newest: int | None) -> bool:
    """Remove unfinished saves, and set aside checkpoints that are not of the present history.

    Args:
        run: its folder; no save may be under way.
        newest: the step of the newest checkpoint of the present history, None if it has none yet.
            A rollback or a resume leaves later ones behind, which the next resume would take for
            the newest.

    Returns whether everything succeeded; each failure is a warning.

    Raises OSError if the disk or the store cannot be read.
    """
    last = "" if newest is None else checkpoint.name_of(newest)
    set_aside = new_set_aside_folder()
    done = True
    for name in checkpoint.names(run):
        if name == last:
            continue
        try:
            if not checkpoint.is_finished(run, name):
                checkpoint.remove(run, name)
                log.info("%s is removed: its save was not finished", run.address_of(name))
            elif name > last:
                target = f"{set_aside}/{Path(name).name}"
                run.move(name, target)
                log.warning(
                    "%s is not of the history that is resumed, and is now %s",
                    run.address_of(name),
                    run.address_of(target),
                )
        except OSError as error:
            _warn(run, name, error)
            done = False
    return done


def _warn(run: RunFolder, name: str, error: OSError) -> None:
    log.warning("%s cannot be removed: %s", run.address_of(name), error)
