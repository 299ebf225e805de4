"""The batches of the training loop, with statistics of decoding and a list of unusable videos."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from taehv import distributed
from taehv.interfaces import Batch, Data, Hooks, RejectedVideo, TransientFailure
from taehv.run.quarantine import Quarantine
from taehv.run.run_folder import RunFolder
from taehv.slots import SURPLUS, SlotLayout


class Supply:
    """This worker's batches of `steps`, which are of `stage`, and statistics over all workers.

    New transient failures are added to `transient_failures`, those of the run so far, and unusable
    videos to the list in the run's folder; the hooks are called with each of them.
    """

    def __init__(
        self,
        data: Data,
        layout: SlotLayout,
        stage: int,
        steps: range,
        transient_failures: set[TransientFailure],
        run: RunFolder,
        hooks: Hooks,
    ) -> None:
        schedule = layout.schedule(distributed.rank(), steps.start, steps.stop)
        self._batches: Iterator[Batch] = iter(
            data.training(schedule, sorted(transient_failures), stage)
        )
        # Decoding begins when the first batch is requested, so it is requested now.
        self._first: Future[Batch | None] | None = ThreadPoolExecutor(1).submit(
            next, self._batches, None
        )
        self._prefetched: Batch | None = None
        self._prefetch_events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        """Recorded before and after a prefetch. A GPU that is still computing reaches both at once;
        one that is idle reaches them as far apart as it waited."""
        self._transient_failures = transient_failures
        self._quarantine = Quarantine(run)
        self._hooks = hooks
        self._rejected: list[RejectedVideo] = []
        self._own_failures: set[TransientFailure] = set()
        self._reset()

    def next(self) -> Batch:
        """The next step's batch."""
        started = time.perf_counter()
        first = self._first.result() if self._first else None
        batch = self._prefetched or first or next(self._batches)
        self._first = self._prefetched = None
        self._waited += time.perf_counter() - started
        if self._prefetch_events:
            before, after = self._prefetch_events
            # At ZeRO 1 and 2 the step reads its results before the prefetch and does not wait here.
            after.synchronize()
            self._waited += before.elapsed_time(after) / 1e3
            self._prefetch_events = None
        self._decoded += batch["decoded"]
        self._used += int((batch["sample"] != SURPLUS).sum()) * batch["frames"].shape[1]
        self._own_failures.update(batch["transient_failures"])
        self.add_rejected(batch)
        return batch

    def prefetch(self) -> None:
        """Fetch the next batch into pinned memory while a GPU computes; nothing without a GPU."""
        if not torch.cuda.is_available():
            return
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        batch = next(self._batches, None)
        if batch is not None:
            self._prefetched = {**batch, "frames": distributed.pinned(batch["frames"])}
        after.record()
        self._prefetch_events = before, after

    def add_rejected(self, batch: Batch) -> None:
        """Add the unusable videos of a batch of training or validation to the list.

        Validation's transient failures are dropped: they belong to windows of another plan, and
        would be taken for windows of training.
        """
        self._rejected += batch["rejected"]

    def gather_rejected(self) -> None:
        """Exchange the videos that each worker rejected since the last call. A collective."""
        rejected, transient_failures = zip(
            *distributed.gather_objects((self._rejected, self._own_failures)), strict=True
        )
        self._rejected, self._own_failures = [], set()
        self._transient_failures.update(*transient_failures)
        if distributed.is_main():
            new = self._quarantine.add(entry for part in rejected for entry in part)
            if new:
                self._hooks.on_quarantined(new, len(self._quarantine))

    def row(self) -> dict[str, float]:
        """Metrics since the last call: the fraction of the time that the slowest worker waited for
        batches, and the frames decoded per frame used. A collective. The number of unusable videos
        is known to the main worker alone.
        """
        self.gather_rejected()
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
        """End the iterator of batches, and with it the decoding."""
        if self._first:
            # A generator cannot be closed while another thread runs it.
            wait([self._first])
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def _reset(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._decoded = self._used = 0
