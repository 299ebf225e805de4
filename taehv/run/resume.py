"""`train.resume` with the address of a checkpoint: back to an older one of the run, or on from
another run's."""

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
"""Folder in a run's, for what it had after the checkpoint to which it went back."""

BEST = ("best_model.pth", "best_model.safetensors")
RESULTS = (
    *BEST,
    "final_model.pth",
    "final_model.safetensors",
    # Rows of two histories are not for one run of MLflow.
    "mlflow.json",
)
"""Of a history that is left, besides its checkpoints and rows."""


def begin_from(run: RunFolder, address: str) -> str:
    """Make the checkpoint at `address` the one that the run begins from; what `train.resume` is to
    be from then on.

    Of the run's own, those after it are put aside, with the weights, the rows of metrics and the
    MLflow run of that history. Another run's is where a run begins that has none itself.

    Raises:
        TrainingError: where the checkpoint is not whole.
        OSError: where the disk or the store refuses.
    """
    holder, name = checkpoint.located(address)
    own = is_own(run, address)
    if not own and checkpoint.latest_valid(run):
        log.warning("%s goes on from its own newest checkpoint, not from %s", run, address)
        return "latest"
    folder = checkpoint.retrieve_whole(holder, name)
    if not own:
        return address
    later = [entry for entry in checkpoint.names(run) if entry > f"{checkpoint.FOLDER}/{name}"]
    if later:
        log.warning("going back to %s", address)
        aside = new_aside()
        _set_results_aside(run, aside)
        _restore_best(run, folder)
        # Last: until they are gone, the same command does all of this again.
        _set_checkpoints_aside(run, aside, later)
        log.warning("what %s had after it is now in %s", run, run.address_of(aside))
    return "latest"


def is_own(run: RunFolder, address: str) -> bool:
    """Whether the checkpoint at `address` lies in the run's own folder."""
    holder, _ = checkpoint.located(address)
    return _is_same_place(holder.address, run.address_of(checkpoint.FOLDER))


def new_aside() -> str:
    """The name of a folder in SET_ASIDE that is not there yet."""
    return f"{SET_ASIDE}/{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"


def _set_results_aside(run: RunFolder, aside: str) -> None:
    journal.copy(run, aside)
    for name in RESULTS:
        if run.exists(name):
            run.move(name, f"{aside}/{name}")


def _set_checkpoints_aside(run: RunFolder, aside: str, checkpoints: list[str]) -> None:
    for name in checkpoints:
        if checkpoint.is_finished(run, name):
            run.move(name, f"{aside}/{Path(name).name}")
        else:
            checkpoint.remove(run, name)


def _restore_best(run: RunFolder, folder: Path) -> None:
    """The best weights as of a checkpoint, if the one that holds them has been kept."""
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
    """Whether two addresses, apart from how their store is opened, are the same folder."""
    one, other = (address.partition("?")[0].rstrip("/") for address in (one, other))
    if "://" in one or "://" in other:
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)
