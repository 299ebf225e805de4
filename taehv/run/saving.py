"""Saving while training goes on: a step waits for a copy of the state, not for the disk.

Each worker's files are written by a thread of its own. When all workers have written theirs, which
they tell each other along with the step's losses, the main worker writes the manifest, in its
thread too. A save that fails costs a warning, and a run that has seen too many in a row ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from taehv import distributed
from taehv.errors import TrainingError
from taehv.run import checkpoint, pruning
from taehv.run.checkpoint import FileRecord
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What one worker writes of a step's state, in copies that training does not touch."""

    step: int
    info: Mapping[str, Any]
    """For the manifest; the same on all workers."""
    tensors: Mapping[str, Callable[[], Mapping[str, Tensor]]]
    """By file name without suffix, CPU tensors, put together in the writing thread."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """By file name."""


@dataclass
class _Save:
    """The save that is under way."""

    step: int
    info: Mapping[str, Any]
    files: Future[dict[str, FileRecord]]
    manifest: Future[None] | None = None


class Saver:
    """Writes a run's checkpoints. All methods but `has_written` are collectives.

    At every moment from the first good save on, one that was saved is whole: that of `last_good`,
    which no save writes over and nothing removes before a newer one is whole.

    Args:
        run: where to.
        keep: the newest so many stay, and the best.
        most_failures: so many saves in a row may fail.
        resumed_from: the step of the run's own checkpoint that training goes on from. What the run
            holds of later steps, or at all where there is none, is put aside.
    """

    def __init__(
        self, run: RunFolder, keep: int, most_failures: int, resumed_from: int | None = None
    ) -> None:
        self._run, self._keep, self._most_failures = run, keep, most_failures
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._save: _Save | None = None
        self._failures = 0
        self.last_good = resumed_from
        """The step of the last checkpoint that is whole, as far as this worker knows."""
        self._is_tidy = False
        """Known to the main worker's thread alone."""
        self._start_tidying()

    def begin(self, snapshot: Snapshot) -> None:
        """Start saving; one that is under way is waited for.

        Args:
            snapshot: of a later step than all before. That of `last_good` itself is saved already.

        Raises:
            TrainingError: where too many saves in a row have failed.
        """
        self.finish()
        if snapshot.step == self.last_good:
            return
        fault = ""
        if distributed.is_main():
            _, fault = _outcome(self._thread.submit(self._prepare, snapshot.step))
        fault = distributed.from_main(fault)
        if fault:
            self._count_failure(snapshot.step, fault)
            return
        files = self._thread.submit(self._write, snapshot)
        self._save = _Save(snapshot.step, snapshot.info, files)

    def has_written(self) -> bool:
        """Whether this worker has written its files and nobody has been told yet."""
        save = self._save
        return save is not None and save.manifest is None and save.files.done()

    def conclude(self) -> None:
        """Write the manifest, or give the save up; called when all workers have written theirs."""
        save = self._save
        assert save is not None
        files, error = _outcome(save.files)
        parts = distributed.gather_objects((files, error))
        faults = [f"worker {rank}: {error}" for rank, (_, error) in enumerate(parts) if error]
        if faults:
            self._save = None
            self._count_failure(save.step, "; ".join(faults))
            return
        records = {name: record for files, _ in parts for name, record in files.items()}
        save.manifest = self._thread.submit(self._commit, save, records)

    def finish(self) -> None:
        """Wait for the save that is under way, if there is one.

        Raises:
            TrainingError: where too many saves in a row have failed.
        """
        if self._save is not None and self._save.manifest is None:
            _ = self._save.files.exception()
            self.conclude()
        save, self._save = self._save, None
        if save is None or save.manifest is None:
            return
        error = distributed.from_main(_outcome(save.manifest)[1])
        if error:
            self._count_failure(save.step, error)
        else:
            self._failures = 0
            self.last_good = save.step

    def close(self) -> None:
        """Let go of the thread; a save that is under way is ended first. No collective."""
        self._thread.shutdown(wait=True)

    def _start_tidying(self, failed: int | None = None) -> None:
        """Called while no worker writes; `failed` is the step of a save that was given up."""
        if distributed.is_main():
            self._thread.submit(self._tidy, failed)

    def _tidy(self, failed: int | None = None) -> None:
        self._is_tidy = False
        try:
            if failed is not None:
                # Also where all is there: the last act may have been done and told as a failure.
                checkpoint.remove(self._run, checkpoint.name_of(failed))
            self._is_tidy = pruning.tidy(self._run, self.last_good)
        except OSError as error:
            log.warning("unfinished saves in %s cannot be removed yet: %s", self._run, error)

    def _prepare(self, step: int) -> None:
        if not self._is_tidy:
            self._tidy()
        checkpoint.begin(self._run, step)

    def _write(self, snapshot: Snapshot) -> dict[str, FileRecord]:
        tensors = {name: make() for name, make in snapshot.tensors.items()}
        return checkpoint.write_files(self._run, snapshot.step, tensors, snapshot.texts)

    def _commit(self, save: _Save, records: Mapping[str, FileRecord]) -> None:
        if not distributed.is_main():
            return
        checkpoint.write_manifest(self._run, save.step, save.info, records)
        name = checkpoint.name_of(save.step)
        log.info("checkpoint %s is saved", self._run.address_of(name))
        best = save.info["best"]
        try:
            pruning.prune(self._run, self._keep, save.step, best[1] if best else None)
        except OSError as error:
            log.warning("old checkpoints of %s cannot be removed: %s", self._run, error)

    def _count_failure(self, step: int, fault: str) -> None:
        self._failures += 1
        self._start_tidying(step)
        good = "none" if self.last_good is None else f"the one of step {self.last_good}"
        message = (
            f"the checkpoint of step {step} could not be written ({fault}); the last good one is "
            f"{good}. Make room in, or see to, {self._run}"
        )
        if self._failures > self._most_failures:
            raise TrainingError(
                f"{message}; {self._failures} saves in a row have failed, more than "
                f"train.max_failed_saves ({self._most_failures})"
            )
        if distributed.is_main():
            log.warning(
                "%s; training goes on (failure %d of %d in a row)",
                message,
                self._failures,
                self._most_failures,
            )


def _outcome(future: Future[Any]) -> tuple[Any, str]:
    """What a thread's work gave, and what was wrong where the disk or the store refused."""
    error = future.exception()
    if error is None:
        return future.result(), ""
    if isinstance(error, OSError):
        return None, str(error)
    raise error
