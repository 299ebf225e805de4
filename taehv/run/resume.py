"""`train.resume` with the address of a checkpoint: an older one of this run, or another run's."""

from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path

from safetensors.torch import load_file

from taehv.model.weights import export_weights
from taehv.run import checkpoint, journal
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)

SET_ASIDE = "set_aside"
"""Folder, inside a run's, of the later checkpoints and results when an older one is resumed."""

BEST = ("best_model.pth", "best_model.safetensors")
RESULTS = (
    *BEST,
    "final_model.pth",
    "final_model.safetensors",
    # An MLflow run must not get rows of two histories.
    "mlflow.json",
)
"""Files that are set aside together with the checkpoints and the rows of metrics."""


def prepare_resume(run: RunFolder, address: str) -> str:
    """Prepare the run's folder for a start from the checkpoint at `address`.

    If it is the run's own, later checkpoints are set aside with the weights, the rows of metrics
    and the MLflow run of their history. Another run's checkpoint is used only while the run has
    none itself.

    Returns the value for `train.resume` from then on. Raises TrainingError if the checkpoint is not
    valid, and OSError if the disk or the store fails.
    """
    holder, name = checkpoint.locate(address)
    own = is_own(run, address)
    if not own and checkpoint.latest_valid(run):
        log.warning("%s goes on from its own newest checkpoint, not from %s", run, address)
        return "latest"
    folder = checkpoint.retrieve_valid(holder, name)
    if not own:
        return address
    later = [entry for entry in checkpoint.names(run) if entry > f"{checkpoint.FOLDER}/{name}"]
    if later:
        log.warning("going back to %s", address)
        set_aside = new_set_aside_folder()
        journal.copy(run, set_aside)
        for file in filter(run.exists, RESULTS):
            run.move(file, f"{set_aside}/{file}")
        _restore_best(run, folder)
        # Last, so that after an interruption the same command does all of this again.
        for entry in later:
            if checkpoint.is_finished(run, entry):
                run.move(entry, f"{set_aside}/{Path(entry).name}")
            else:
                checkpoint.remove(run, entry)
        log.warning("what %s had after it is now in %s", run, run.address_of(set_aside))
    return "latest"


def is_own(run: RunFolder, address: str) -> bool:
    """Whether the checkpoint at `address` lies in the run's own folder."""
    holder, _ = checkpoint.locate(address)
    return _is_same_place(holder.address, run.address_of(checkpoint.FOLDER))


def new_set_aside_folder() -> str:
    """A new name for a folder in SET_ASIDE."""
    return f"{SET_ASIDE}/{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"


def _restore_best(run: RunFolder, folder: Path) -> None:
    """Export the best weights as of a checkpoint, if their own checkpoint still exists."""
    best = checkpoint.read_info(folder)["best"]
    if best is None:
        return
    kept = run.retrieve(checkpoint.name_of(int(best[1])))
    if checkpoint.find_fault(kept):
        log.warning("the best weights until then, of step %d, are no longer there", best[1])
        return
    export_weights(load_file(kept / "ema.safetensors"), *(run.local / name for name in BEST))
    for name in BEST:
        run.publish(name)


def _is_same_place(one: str, other: str) -> bool:
    """Whether two addresses are the same folder, whatever their store's options."""
    one, other = (address.partition("?")[0].rstrip("/") for address in (one, other))
    if "://" in one or "://" in other:
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)
