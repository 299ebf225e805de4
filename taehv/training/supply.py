"""The training loop's side of the clips: their batches, what they cost, and what came of videos."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from taehv import distributed
from taehv.interfaces import Batch, Data, Hooks, RejectedVideo, Verdict
from taehv.run.quarantine import Quarantine
from taehv.run.run_folder import RunFolder
from taehv.slots import SURPLUS, SlotLayout


class Supply:
    """This worker's batches from `start` to `stop`, and an account of them for all workers.

    Args:
        data: where clips come from.
        layout: which samples are whose.
        start, stop: the steps to be made.
        verdicts: those of the run so far; what comes in is added.
        run: where the list of unusable videos is kept.
        hooks: told of every video that is added to the list.
    """

    def __init__(
        self,
        data: Data,
        layout: SlotLayout,
        start: int,
        stop: int,
        verdicts: set[Verdict],
        run: RunFolder,
        hooks: Hooks,
    ) -> None:
        schedule = layout.schedule(distributed.rank(), start, stop)
        self._batches: Iterator[Batch] = iter(data.training(schedule, sorted(verdicts)))
        # Decoding begins with the first batch that is asked for, and may as well begin now.
        self._first: Future[Batch | None] | None = ThreadPoolExecutor(1).submit(
            next, self._batches, None
        )
        self._ahead: Batch | None = None
        self._idle: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        """Since when and until when a GPU, had it nothing to do, would have waited for it."""
        self._verdicts = verdicts
        self._quarantine = Quarantine(run)
        self._hooks = hooks
        self._rejected: list[RejectedVideo] = []
        self._own_verdicts: set[Verdict] = set()
        self._reset()

    def next(self) -> Batch:
        """The next step's batch."""
        started = time.perf_counter()
        first = self._first.result() if self._first else None
        batch = self._ahead or first or next(self._batches)
        self._first = self._ahead = None
        self._waited += time.perf_counter() - started
        if self._idle:
            since, until = self._idle
            # At ZeRO 1 and 2 nobody has waited for it: a step's message is read before it.
            until.synchronize()
            self._waited += since.elapsed_time(until) / 1e3
            self._idle = None
        self._decoded += batch["decoded"]
        self._used += int((batch["sample"] != SURPLUS).sum()) * batch["frames"].shape[1]
        self._own_verdicts.update(batch["verdicts"])
        self.note(batch)
        return batch

    def look_ahead(self) -> None:
        """Take the next batch now, while a GPU computes, to where the GPU reads it from by itself.
        (A CPU has no time to spare.)"""
        if not torch.cuda.is_available():
            return
        since, until = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        since.record()
        batch = next(self._batches, None)
        if batch is not None:
            self._ahead = {**batch, "frames": distributed.pinned(batch["frames"])}
        until.record()
        self._idle = since, until

    def note(self, batch: Batch) -> None:
        """Remember which videos a batch, of training or validation, found unusable.

        The verdicts of validation are not kept: they name windows of another plan, and would be
        taken for those of training.
        """
        self._rejected += batch["rejected"]

    def share(self) -> None:
        """Tell all workers which videos each has given up since the last call. A collective."""
        rejected, verdicts = zip(
            *distributed.gather_objects((self._rejected, self._own_verdicts)), strict=True
        )
        self._rejected, self._own_verdicts = [], set()
        self._verdicts.update(*verdicts)
        if distributed.is_main():
            new = self._quarantine.add(entry for part in rejected for entry in part)
            if new:
                self._hooks.on_quarantined(new, len(self._quarantine))

    def row(self) -> dict[str, float]:
        """What all workers' clips cost since the last call. A collective, the same on all but
        for the videos given up so far, which the main worker knows.

        The part of the time that the slowest worker waited for batches, and the frames decoded
        per frame used.
        """
        self.share()
        seconds = time.perf_counter() - self._started
        waited, decoded, used = zip(
            *distributed.gather_objects((self._waited, self._decoded, self._used)), strict=True
        )
        self._reset()
        return {
            "train/data_wait_fraction": max(waited) / seconds,
            "train/decoded_frames_per_used_frame": sum(decoded) / max(1, sum(used)),
            "train/skipped_videos": float(len(self._quarantine)),
        }

    def close(self) -> None:
        """No more batches are wanted."""
        if self._first:
            # A generator can only be closed while it is at rest.
            wait([self._first])
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def _reset(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._decoded = self._used = 0
