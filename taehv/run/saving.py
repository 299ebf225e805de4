"""Asynchronous checkpoints: a step waits for a copy of the state, not for the disk.

Each worker's files are written by a thread. The workers exchange, together with a step's losses,
whether theirs are written; when all are, the main worker's thread writes the manifest. A failed
save is a warning, and too many in a row end the run.
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
    """One worker's part of a checkpoint, in copies that training does not change."""

    step: int
    info: Mapping[str, Any]
    """For the manifest; the same on all workers."""
    tensors: Mapping[str, Callable[[], Mapping[str, Tensor]]]
    """By file name without suffix: functions that the thread calls for the CPU tensors."""
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
    """Writes a run's checkpoints. All methods but `has_written` and `close` are collectives.

    From the first successful save on there is a valid checkpoint at every moment: that of
    `last_good`, which is neither overwritten nor removed before a newer one is valid.

    Args:
        run: the run's folder.
        keep: checkpoints that are kept besides the best.
        max_failures: saves that may fail in a row.
        resumed_from: the step of the run's own checkpoint that training resumes from. Later
            checkpoints in the folder, or all of them if it is None, are set aside.
    """

    def __init__(
        self, run: RunFolder, keep: int, max_failures: int, resumed_from: int | None = None
    ) -> None:
        self._run, self._keep, self._max_failures = run, keep, max_failures
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._save: _Save | None = None
        self._failures = 0
        self.last_good = resumed_from
        """The step of the last checkpoint that this worker knows to be valid."""
        self._is_tidy = False
        """Read and written by the main worker's thread alone."""
        self._start_tidying()

    def begin(self, snapshot: Snapshot) -> None:
        """Start a save, after waiting for the one before.

        The snapshot is of a later step than all before, or of `last_good`, which is saved already.
        Raises TrainingError if too many saves in a row have failed.
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
        """Whether this worker has written its files, and `conclude` has not been called yet."""
        save = self._save
        return save is not None and save.manifest is None and save.files.done()

    def conclude(self) -> None:
        """Start writing the manifest once all workers have written their files, or give up."""
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
        """Wait for the save that is under way, if there is one. Raises TrainingError if too many
        saves in a row have failed."""
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
        """End the thread, after the work that it has begun."""
        self._thread.shutdown(wait=True)

    def _start_tidying(self, failed: int | None = None) -> None:
        """Clean up while no worker writes; `failed` is the step of a save that was given up."""
        if distributed.is_main():
            self._thread.submit(self._tidy, failed)

    def _tidy(self, failed: int | None = None) -> None:
        self._is_tidy = False
        try:
            if failed is not None:
                # The manifest may be there although writing it was reported as a failure.
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
        if self._failures > self._max_failures:
            raise TrainingError(
                f"{message}; {self._failures} saves in a row have failed, more than "
                f"train.max_failed_saves ({self._max_failures})"
            )
        if distributed.is_main():
            log.warning(
                "%s; training goes on (failure %d of %d in a row)",
                message,
                self._failures,
                self._max_failures,
            )


def _outcome(future: Future[Any]) -> tuple[Any, str]:
    """A thread's result, and the message of an OSError in it; other errors are raised."""
    error = future.exception()
    if error is None:
        return future.result(), ""
    if isinstance(error, OSError):
        return None, str(error)
    raise error
