"""Which of the checkpoints in a run's folder stay: the newest of its history, and the best.

The main worker alone removes, and only while no worker writes what it looks at.
"""

from __future__ import annotations

import logging
from pathlib import Path

from taehv.run import checkpoint
from taehv.run.resume import new_aside
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)


def prune(run: RunFolder, keep: int, newest: int, best_step: int | None) -> None:
    """Remove what came before the `keep` newest checkpoints, but not that of `best_step`.

    Only whole ones count, by their manifests and sizes. Nothing is removed where that of the step
    `newest`, the last that was written, is not whole.

    Raises OSError where the disk or the store cannot be looked at; what cannot be removed costs a
    warning each.
    """
    last = checkpoint.name_of(newest)
    fault = checkpoint.find_plain_fault(run, last)
    if fault:
        log.warning("no older checkpoint is removed: %s: %s", run.address_of(last), fault)
        return
    kept = [last]
    older = [name for name in checkpoint.names(run) if name < last]
    for name in older:
        if len(kept) < keep and not checkpoint.find_plain_fault(run, name):
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
    """Remove what saves left that were not finished; put aside what is not of this history.

    Args:
        run: where no save is under way.
        newest: the step of the newest checkpoint of this history. A later one, which a life went
            back behind or passed over, would be taken for the newest by the next life: it is moved.
            None: the history has none here yet.

    Returns whether all of that is done; what could not be done has cost a warning each.

    Raises OSError where the disk or the store cannot be looked at.
    """
    last = "" if newest is None else checkpoint.name_of(newest)
    aside = new_aside()
    done = True
    for name in checkpoint.names(run):
        if name == last:
            continue
        try:
            if not checkpoint.is_finished(run, name):
                checkpoint.remove(run, name)
                log.info("%s is removed: its save was not finished", run.address_of(name))
            elif name > last:
                target = f"{aside}/{Path(name).name}"
                run.move(name, target)
                log.warning(
                    "%s is not of the history that goes on, and is now %s",
                    run.address_of(name),
                    run.address_of(target),
                )
        except OSError as error:
            _warn(run, name, error)
            done = False
    return done


def _warn(run: RunFolder, name: str, error: OSError) -> None:
    log.warning("%s cannot be removed: %s", run.address_of(name), error)
