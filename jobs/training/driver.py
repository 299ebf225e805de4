"""The driver's side of a run: it waits for the workers, shows, tracks, and passes on Ctrl-C.

Workers that die are started again here, with as many as there is room for. Ray Train can do that
itself (`num_workers=(min, max)`, `max_preemption_failures`, `get_preemption_info()`), but Ray 2.60
ends healthy workers, without asking them to save, when there is room for more; it counts the loss
of a node that gave no notice as a failure of the run; and it places two workers of half a CPU each
on one CPU. So `jobs/cluster/connection.py` gives it a fixed number of workers and no restarts. What
has become of this is worth a look at each newer Ray.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, assert_never

import ray
from ray.exceptions import RayError
from ray.train import Result, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from jobs.cli.config import ClusterConfig, Config
from jobs.cli.console import stop_signals_to
from jobs.cli.progress import Progress
from jobs.cluster.pool import Pool, Shares, going_nodes
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
from taehv.run.run_folder import RunFolder, go_on_line

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Between two looks at the mailbox. Where training runs on this machine's CPUs, each of them, with
the mailbox's own process, takes time from a step."""

MOST_BARREN_LIVES = 10
"""In a row, which lost their nodes before they got further than the run had been: then it is the
run that kills them."""

VIDEO_FPS = 8.0
"""Of the comparison videos: slow enough to see what flickers."""


@dataclass(frozen=True)
class MostSkipped:
    """How many videos may turn out to be unusable."""

    fraction: float
    of_videos: int

    @property
    def videos(self) -> int:
        return int(self.fraction * self.of_videos)

    @property
    def told(self) -> str:
        return f"data.max_bad_fraction ({self.fraction:g}) of the {self.of_videos} videos"


@dataclass(frozen=True)
class Ending:
    """How a life of a run ended: by itself, with a worker's death, or for lack of memory."""

    summary: Mapping[str, Any] | None
    """See `taehv.training.Summary`."""
    error: str = ""
    shortage: OutOfMemory | None = None


class Driver:
    """Drives one run through its lives.

    A life is a set of training workers, from their start to their end. It ends with the run, when
    a worker dies, when a pass is too large for a worker's GPU, or when it is asked to save and make
    way, for more workers or from nodes that were given notice. The next one goes on from the newest
    checkpoint.

    Args:
        run: where pictures are written.
        mailbox: the workers' messages.
        tracking: gives MLflow, which may still be starting.
        progress: bar or lines.
        most_skipped: so many videos may turn out to be unusable.
    """

    def __init__(
        self,
        run: RunFolder,
        mailbox: Any,
        tracking: Callable[[], Tracker],
        progress: Progress,
        most_skipped: MostSkipped,
    ) -> None:
        self.run = run
        self.mailbox = mailbox
        self._tracking = tracking
        self.progress = progress
        self.most_skipped = most_skipped
        self.stopped_by: signal.Signals | None = None
        self._summary: Mapping[str, Any] | None = None
        self._failure: str | None = None
        self._shortage: OutOfMemory | None = None
        self._nodes: set[str] = set()
        self._placement_group: PlacementGroup | None = None
        self._told_way = False
        self._step = self._furthest = 0
        self._barren_lives = 0

    @property
    def tracker(self) -> Tracker:
        return self._tracking()

    def drive(
        self, pool: Pool, config: Config, make_trainer: Callable[[Config, Shares], TorchTrainer]
    ) -> Mapping[str, Any] | None:
        """Run to the end and give the workers' summary (see `taehv.training.Summary`); None where
        the run was stopped while it waited for room.

        Args:
            pool: where workers can run. Left as a context when the run ends, it asks the
                autoscaler for nothing more.
            config: of the run; later lives may have smaller passes (`train.auto_micro_batch`).
            make_trainer: the workers of a life, by its configuration and shares.

        Raises:
            TrainingError: for what a worker said only the user can mend, for workers that died
                more often than they may, and where there is no room for them.
        """
        failures = 0
        with self._signals(), pool:
            while True:
                shares = pool.wait(cancelled=lambda: self.stopped_by is not None)
                if shares is None:
                    return None
                trainer = make_trainer(config, shares)
                ending = self._live(trainer, pool, config.cluster, shares.workers)
                if self._failure is not None:
                    raise TrainingError(self._failure)
                summary = ending.summary
                if summary is not None and (summary["finished"] or self.stopped_by):
                    return summary
                if ending.shortage is not None:
                    config = _with_smaller_passes(config, ending.shortage)
                elif summary is None:
                    pool.look_again()
                    failures += self._judge(ending, failures, pool, shares, config)

    def stop(self, number: signal.Signals) -> None:
        """Ask the workers to save and end, as this signal does. From any thread."""
        self.stopped_by = number
        self.mailbox.request_stop.remote()

    def _judge(
        self, ending: Ending, failures: int, pool: Pool, shares: Shares, config: Config
    ) -> int:
        """Whether a death counts as a failure, 0 or 1; nodes that go are none.

        Raises:
            TrainingError: where it was one too many.
        """
        # A node that was replaced leaves as much room as there was; one whose worker had not yet
        # said where it runs is not among the nodes of this life. Either shows by the other.
        if self._nodes - pool.staying() or pool.possible() < shares.workers:
            log.warning("nodes have gone (%s); going on with what is there", ending.error)
            self._judge_progress(ending)
            return 0
        most = config.cluster.max_failures
        if failures == most:
            raise TrainingError(
                f"the training workers failed: {ending.error} (failure {failures + 1}, "
                f"cluster.max_failures is {most})"
            )
        log.warning(
            "the training workers failed (%d of %d times): %s; starting them again",
            failures + 1,
            most,
            ending.error,
        )
        return 1

    def _judge_progress(self, ending: Ending) -> None:
        """Raises TrainingError where life after life loses its nodes and none gets any further, as
        where a batch fills a node's memory and the autoscaler brings another: without end."""
        if self._step > self._furthest:
            self._furthest, self._barren_lives = self._step, 0
            return
        self._barren_lives += 1
        if self._barren_lives == MOST_BARREN_LIVES:
            raise TrainingError(
                f"{MOST_BARREN_LIVES} times in a row nodes were lost before the run got past step "
                f"{self._furthest} ({ending.error}). Does the run end them? See the memory of a "
                "node while it trains, and `dmesg` there. If they were merely reclaimed, go on "
                f"with {go_on_line(self.run.address)}"
            )

    def _live(
        self, trainer: TorchTrainer, pool: Pool, config: ClusterConfig, workers: int
    ) -> Ending:
        """One life."""
        self._summary, self._shortage, self._nodes, self._told_way = None, None, set(), False
        self._placement_group = None
        ray.get(self.mailbox.begin.remote())
        # Only now: a signal that came before this call ended has had its request taken back by it.
        if self.stopped_by is not None:
            self.mailbox.request_stop.remote()
        log.info("starting %d training %s", workers, "worker" if workers == 1 else "workers")
        fit = Fit(trainer)
        fit.start()
        look_at = time.monotonic() + config.resize_seconds
        while fit.is_alive():
            self._deliver()
            pool.request(workers)
            if self._nodes & going_nodes():
                self._make_way("a node has been given notice")
            elif time.monotonic() > look_at:
                look_at = time.monotonic() + config.resize_seconds
                if pool.could_grow(workers):
                    self._make_way("there is room for more workers")
            fit.join(POLL_SECONDS)
        self._deliver()
        if fit.error is not None:
            self._free_placement_group()
        error = "" if fit.error is None else _cause(fit.error)
        error = error or "they ended without a word; see the log above"
        return Ending(self._summary, error, self._shortage)

    def _free_placement_group(self) -> None:
        """Ray keeps the resources of a killed controller's workers until this job ends, and new
        workers would wait for them (https://github.com/ray-project/ray/issues/65881). Ray Train's
        own cleaner frees them only where there is a dashboard. Where they are free already, this
        does nothing."""
        if self._placement_group is not None:
            remove_placement_group(self._placement_group)

    def _make_way(self, reason: str) -> None:
        """Ask the workers, once in their life, to save and end."""
        if not self._told_way:
            self._told_way = True
            log.info("%s: saving a checkpoint, then going on with what is there", reason)
            self.mailbox.request_stop.remote()

    def _deliver(self) -> None:
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
                self.tracker.log(row, row["step"])
            case LineLogged(level, text):
                log.log(level, text)
            case SamplesMade():
                self._write_samples(message)
            case HealthFinding(name, text):
                self.tracker.tag(f"health.{name}", text)
            case VideosQuarantined(rejected, total):
                self._warn_of_skipped(rejected, total)
            case WorkerStarted(node_id, placement_group):
                self._nodes.add(node_id)
                self._placement_group = placement_group
            case OutOfMemory():
                # Several workers may send one; all come to the same number of clips.
                self._shortage = message
            case RunFailed(error):
                self._failure = self._failure or error
            case RunEnded(summary):
                self._summary = summary
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
        self.tracker.artifact(picture, "samples")
        self.tracker.artifact(video, "samples")

    def _warn_of_skipped(self, rejected: Sequence[RejectedVideo], total: int) -> None:
        for entry in rejected:
            log.warning("video %s is skipped: %s", entry["video"], entry["reason"])
        self.progress.skipped(total)
        if total > self.most_skipped.videos and self._failure is None:
            self._failure = (
                f"{total} videos cannot be used, more than {self.most_skipped.told}; the last of "
                f"them is {rejected[-1]['video']} ({rejected[-1]['reason']}), all are listed in "
                f"{self.run.address_of('quarantine.jsonl')}. "
                "Mend or remove them, or raise --data.max-bad-fraction, and go on with "
                f"{go_on_line(self.run.address)}"
            )
            self.mailbox.request_stop.remote()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask the workers to save and end; a second one ends at once."""

        def handle(number: signal.Signals) -> None:
            if self.stopped_by is not None:
                raise KeyboardInterrupt
            log.warning("%s: saving a checkpoint, then stopping", number.name)
            self.stop(number)

        if threading.current_thread() is not threading.main_thread():
            # Signals are the main thread's affair; `stop` is for who drives a run beside it.
            yield
            return
        with stop_signals_to(handle):
            yield


class Fit(threading.Thread):
    """`trainer.fit()` beside the main thread, which has signals and messages to attend to."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self.trainer = trainer
        self.result: Result | None = None
        self.error: TrainingFailedError | RayError | None = None

    def run(self) -> None:
        try:
            self.result = self.trainer.fit()
        except (TrainingFailedError, RayError) as error:
            # The latter where the controller itself has died.
            self.error = error


def _with_smaller_passes(config: Config, shortage: OutOfMemory) -> Config:
    clips = shortage.clips_per_pass
    log.warning(
        "%s; starting the workers again with train.max_clips_per_pass %d (the global batch stays)",
        shortage.shortage,
        clips,
    )
    train = dataclasses.replace(config.train, max_clips_per_pass=clips)
    return dataclasses.replace(config, train=train)


def _cause(error: TrainingFailedError | RayError) -> str:
    """The last line that says something: Ray's message is a page of traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
