"""The driver's side of a run: it starts the workers, shows and tracks what they report, and stops
them on Ctrl-C.

Where workers die, it starts as many again as there is room for. Elastic training is ours, since Ray
Train's own (`num_workers=(min, max)`, `max_preemption_failures`), as of Ray 2.60, ends healthy
workers without asking them to save when there is room for more; counts the loss of a node that was
not drained as a failure of the run; and places two workers of half a CPU each on one CPU. So
`jobs/training/trainer.py` gives it a fixed number of workers and no restarts.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, assert_never

import ray
from ray.exceptions import RayError
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from jobs.cli.config import Config
from jobs.cli.console import stop_signals_to
from jobs.cli.progress import TrainingProgress
from jobs.cluster.capacity import Allocation, ClusterCapacity
from jobs.cluster.ray_internals import draining_nodes
from jobs.media.pictures import comparison_mp4, side_by_side_png
from jobs.tracking.tracker import Tracker
from jobs.training.messages import (
    HealthFinding,
    LineLogged,
    OutOfMemory,
    RowLogged,
    RunEnded,
    RunFailed,
    SamplesMade,
    StepDone,
    VideosQuarantined,
    WorkerMessage,
    WorkerStarted,
)
from taehv.errors import TrainingError
from taehv.interfaces import RejectedVideo
from taehv.run.run_folder import RunFolder, resume_options

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Between two looks into the mailbox. Where this machine's CPUs train, each look takes time from a
step, as does the mailbox's own process."""

MAX_RESTARTS_WITHOUT_PROGRESS = 10
"""Where so many attempts in a row lost nodes before they got past the run's furthest step, the run
itself is what kills the nodes."""

VIDEO_FPS = 8.0
"""Frames per second of the comparison videos: slow enough to see what flickers."""


@dataclass
class Attempt:
    """One group of training workers, from their start to their end, and what they report."""

    workers: int
    node_ids: set[str] = field(default_factory=set)
    placement_group: PlacementGroup | None = None
    restart_requested: bool = False
    summary: Mapping[str, Any] | None = None
    """See `taehv.training.Summary`."""
    shortage: OutOfMemory | None = None
    error: str = "they ended without an error message; see the log above"


@dataclass(eq=False)
class Driver:
    """Drives one run through as many attempts as it takes.

    An attempt ends when the run is done, a worker dies, or a pass is too large for a GPU; or when
    the driver requests a restart, because there is room for more workers or a node drains. The next
    attempt goes on from the newest checkpoint.
    """

    config: Config
    """Of the run; later attempts may have smaller passes (`train.auto_micro_batch`)."""
    mailbox: Any
    """Takes the workers' messages."""
    tracker: Callable[[], Tracker]
    """Gives the tracker, which may still be starting."""
    progress: TrainingProgress
    videos: int
    """How many there are, to train on and to validate with."""
    capacity: ClusterCapacity
    """Where workers can run; `drive` enters and leaves its context."""
    make_trainer: Callable[[Config, Allocation], TorchTrainer]
    """Makes the workers of an attempt."""
    stop_requested: Callable[[], bool] = lambda: False
    """Whether someone else, such as the sweep of a trial, wants the run to stop."""
    stopped_by: signal.Signals | None = None
    _failure: str | None = None
    _attempt: Attempt = field(default_factory=lambda: Attempt(workers=0))
    _step: int = 0
    _furthest_step: int = 0
    _restarts_without_progress: int = 0

    def __post_init__(self) -> None:
        self.run = RunFolder(self.config.train.run_dir)

    def drive(self) -> Mapping[str, Any] | None:
        """Run to the end and give the workers' summary (see `taehv.training.Summary`); None where
        the run was stopped while it waited for room.

        Raises:
            TrainingError: where a worker reports what only the user can mend, where workers die
                more often than they may, and where there is no room for them.
        """
        failures = 0
        with self._signals(), self.capacity:
            while True:
                allocation = self.capacity.wait_for_allocation(cancelled=self._is_stopped)
                if allocation is None:
                    return None
                self._attempt = attempt = Attempt(allocation.workers)
                self._run_attempt(self.make_trainer(self.config, allocation))
                if self._failure is not None:
                    raise TrainingError(self._failure)
                summary = attempt.summary
                if summary is not None and (summary["finished"] or self.stopped_by):
                    return summary
                if attempt.shortage is not None:
                    self._make_passes_smaller(attempt.shortage)
                elif summary is None and self._nodes_were_lost():
                    self._check_progress()
                elif summary is None:
                    failures += 1
                    self._check_failures(failures)

    def stop(self, number: signal.Signals) -> None:
        """Ask the workers to save and end, as this signal does."""
        self.stopped_by = number
        self.mailbox.request_stop.remote()

    def _is_stopped(self) -> bool:
        if self.stopped_by is None and self.stop_requested():
            self.stop(signal.SIGTERM)
        return self.stopped_by is not None

    def _nodes_were_lost(self) -> bool:
        self.capacity.probe_nodes()
        # Where a lost node was replaced, there is as much room as before; where its worker had not
        # reported yet, it is not among `node_ids`. One of the two shows the loss.
        return bool(
            self._attempt.node_ids - self.capacity.available_node_ids()
            or self.capacity.fitting_workers() < self._attempt.workers
        )

    def _check_failures(self, failures: int) -> None:
        """Raises TrainingError where there were more failures than there may be."""
        most, error = self.config.cluster.max_failures, self._attempt.error
        if failures > most:
            raise TrainingError(
                f"the training workers failed: {error} (failure {failures}, "
                f"cluster.max_failures is {most})"
            )
        log.warning(
            "the training workers failed (%d of %d times): %s; starting them again",
            failures,
            most,
            error,
        )

    def _make_passes_smaller(self, shortage: OutOfMemory) -> None:
        log.warning(
            "%s; starting the workers again with train.max_clips_per_pass %d (the global batch "
            "stays)",
            shortage.shortage,
            shortage.clips_per_pass,
        )
        train = dataclasses.replace(self.config.train, max_clips_per_pass=shortage.clips_per_pass)
        self.config = dataclasses.replace(self.config, train=train)

    def _check_progress(self) -> None:
        """Raises TrainingError where attempt after attempt loses nodes and none gets any further.
        Where a batch fills a node's memory and the autoscaler adds another, there is no end."""
        error = self._attempt.error
        log.warning("nodes have gone (%s); going on with those that are left", error)
        if self._step > self._furthest_step:
            self._furthest_step, self._restarts_without_progress = self._step, 0
            return
        self._restarts_without_progress += 1
        if self._restarts_without_progress == MAX_RESTARTS_WITHOUT_PROGRESS:
            raise TrainingError(
                f"{MAX_RESTARTS_WITHOUT_PROGRESS} times in a row nodes were lost before the run "
                f"got past step {self._furthest_step} ({error}). Does the run end them? See "
                "the memory of a node while it trains, and `dmesg` there. If they were merely "
                f"reclaimed, go on with {resume_options(self.run.address)}"
            )

    def _run_attempt(self, trainer: TorchTrainer) -> None:
        workers, resize_seconds = self._attempt.workers, self.config.cluster.resize_seconds
        ray.get(self.mailbox.begin.remote())
        # Only now: `begin` has withdrawn the request of a signal that came before it ended.
        if self.stopped_by is not None:
            self.mailbox.request_stop.remote()
        log.info("starting %d training %s", workers, "worker" if workers == 1 else "workers")
        fit = FitThread(trainer)
        fit.start()
        next_check = time.monotonic() + resize_seconds
        while fit.is_alive():
            self._is_stopped()
            self._handle_messages()
            self.capacity.request_nodes(workers)
            if self._attempt.node_ids & draining_nodes():
                self._request_restart("a node has been given notice")
            elif time.monotonic() > next_check:
                next_check = time.monotonic() + resize_seconds
                if self.capacity.could_add_workers(workers):
                    self._request_restart("there is room for more workers")
            fit.join(POLL_SECONDS)
        self._handle_messages()
        if fit.error is not None:
            self._attempt.error = last_line(fit.error)
            self._free_placement_group()

    def _free_placement_group(self) -> None:
        """Ray keeps the resources of a killed controller's workers until this job ends, and new
        workers would wait for them (https://github.com/ray-project/ray/issues/65881). Ray Train's
        own cleaner frees them only where there is a dashboard. Where they are free already, this
        does nothing."""
        if self._attempt.placement_group is not None:
            remove_placement_group(self._attempt.placement_group)

    def _request_restart(self, reason: str) -> None:
        """Ask the workers, once in an attempt, to save and end."""
        if not self._attempt.restart_requested:
            self._attempt.restart_requested = True
            log.info("%s: saving a checkpoint, then starting the workers again", reason)
            self.mailbox.request_stop.remote()

    def _handle_messages(self) -> None:
        messages: list[WorkerMessage] = ray.get(self.mailbox.take.remote())
        for message in messages:
            self._handle(message)

    def _handle(self, message: WorkerMessage) -> None:
        match message:
            case StepDone(step):
                self._show_step(step)
            case RowLogged(row):
                self._show_step(row["step"])
                self.progress.row(row)
                self.tracker().log(row, row["step"])
            case LineLogged(level, text):
                log.log(level, text)
            case SamplesMade():
                self._write_samples(message)
            case HealthFinding(name, text):
                self.tracker().tag(f"health.{name}", text)
            case VideosQuarantined(rejected, total):
                self._warn_of_skipped(rejected, total)
            case WorkerStarted(node_id, placement_group):
                self._attempt.node_ids.add(node_id)
                self._attempt.placement_group = placement_group
                self.progress.workers_placed(placement_group)
            case OutOfMemory():
                # Several workers may send one; all come to the same number of clips.
                self._attempt.shortage = message
            case RunFailed(error):
                self._failure = self._failure or error
            case RunEnded(summary):
                self._attempt.summary = summary
            case _:
                assert_never(message)

    def _show_step(self, step: int) -> None:
        self._step = max(self._step, step)
        self.progress.step(step)

    def _write_samples(self, samples: SamplesMade) -> None:
        names = [f"samples/step_{samples.step:08d}.{kind}" for kind in ("png", "mp4")]
        picture, video = (self.run.local / name for name in names)
        try:
            (self.run.local / "samples").mkdir(exist_ok=True)
            side_by_side_png(samples.original, samples.reconstructed, picture)
            comparison_mp4(samples.original, samples.reconstructed, video, VIDEO_FPS)
            for name in names:
                self.run.publish(name)
        except OSError as error:
            log.warning("the pictures of step %d cannot be written: %s", samples.step, error)
            return
        self.tracker().artifact(picture, "samples")
        self.tracker().artifact(video, "samples")

    def _warn_of_skipped(self, rejected: Sequence[RejectedVideo], total: int) -> None:
        for entry in rejected:
            log.warning("video %s is skipped: %s", entry["video"], entry["reason"])
        self.progress.skipped(total)
        fraction = self.config.data.max_bad_fraction
        if total > int(fraction * self.videos) and self._failure is None:
            self._failure = (
                f"{total} videos cannot be used, more than data.max_bad_fraction ({fraction:g}) "
                f"of the {self.videos} videos; the last of them is "
                f"{rejected[-1]['video']} ({rejected[-1]['reason']}), all are listed in "
                f"{self.run.address_of('quarantine.jsonl')}. "
                "Mend or remove them, or raise --data.max-bad-fraction, and go on with "
                f"{resume_options(self.run.address)}"
            )
            self.mailbox.request_stop.remote()

    def _signals(self) -> AbstractContextManager[None]:
        """Ctrl-C and SIGTERM ask the workers to save and end; a second one ends at once."""

        def handle(number: signal.Signals) -> None:
            if self.stopped_by is not None:
                raise KeyboardInterrupt
            log.warning("%s: saving a checkpoint, then stopping", number.name)
            self.stop(number)

        # Only the main thread gets signals; a driver in another one is asked by `stop_requested`.
        in_main_thread = threading.current_thread() is threading.main_thread()
        return stop_signals_to(handle) if in_main_thread else nullcontext()


class FitThread(threading.Thread):
    """Runs `trainer.fit()` while the main thread handles signals and messages."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self.trainer = trainer
        self.error: TrainingFailedError | RayError | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except (TrainingFailedError, RayError) as error:
            # A RayError where the controller itself has died.
            self.error = error


def last_line(error: TrainingFailedError | RayError) -> str:
    """The last line with text: Ray's message is a page of traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
