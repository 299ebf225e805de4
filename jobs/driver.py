"""The driver's side of a run: it waits for the workers, shows, tracks, and passes on Ctrl-C."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from jobs.pictures import comparison_mp4, side_by_side_png
from jobs.progress import Progress
from jobs.tracking import Tracker
from taehv.errors import TrainingError
from taehv.journal import Row

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
VIDEO_FPS = 8.0
"""Of the comparison videos: slow enough to see what flickers."""


class Driver:
    """Drives one run.

    Args:
        run_dir: where pictures and the quarantine are written.
        mailbox: the workers' messages.
        tracker: MLflow.
        progress: bar or lines.
    """

    def __init__(self, run_dir: Path, mailbox: Any, tracker: Tracker, progress: Progress) -> None:
        self.run_dir = run_dir
        self.mailbox = mailbox
        self.tracker = tracker
        self.progress = progress
        self.stopped_by: signal.Signals | None = None
        self._summary: Mapping[str, Any] | None = None
        self._failure: str | None = None
        self._quarantined: set[str] = set()

    def run(self, trainer: TorchTrainer) -> Mapping[str, Any]:
        """Run to the end and give the workers' summary (see `taehv.training.Summary`).

        Raises:
            TrainingError: for what a worker said only the user can mend, and for workers that
                died more often than they may.
        """
        ended = _Fit(trainer)
        with self._signals():
            ended.start()
            while ended.is_alive():
                self._deliver()
                time.sleep(POLL_SECONDS)
            self._deliver()
        if self._failure is not None:
            raise TrainingError(self._failure)
        if ended.error is not None:
            raise TrainingError(f"the training workers failed: {_cause(ended.error)}")
        if self._summary is None:
            raise TrainingError("the training workers ended without a word; see the log above")
        return self._summary

    def _deliver(self) -> None:
        for kind, content in ray.get(self.mailbox.take.remote()):
            getattr(self, f"_on_{kind}")(content)

    def _on_step(self, step: int) -> None:
        self.progress.step(step)

    def _on_row(self, row: Row) -> None:
        self.progress.step(row["step"])
        self.progress.row(row)
        self.tracker.log(row, row["step"])

    def _on_log(self, line: tuple[int, str]) -> None:
        log.log(*line)

    def _on_samples(self, samples: tuple[int, Any, Any]) -> None:
        step, original, reconstructed = samples
        stem = self.run_dir / "samples" / f"step_{step:08d}"
        stem.parent.mkdir(exist_ok=True)
        picture, video = stem.with_suffix(".png"), stem.with_suffix(".mp4")
        side_by_side_png(original, reconstructed, picture)
        comparison_mp4(original, reconstructed, video, VIDEO_FPS)
        self.tracker.artifact(picture, "samples")
        self.tracker.artifact(video, "samples")

    def _on_rejected(self, rejected: list[Mapping[str, Any]]) -> None:
        new = [entry for entry in rejected if entry["video"] not in self._quarantined]
        with (self.run_dir / "quarantine.jsonl").open("a") as file:
            for entry in new:
                self._quarantined.add(entry["video"])
                file.write(json.dumps(entry) + "\n")
                log.warning("video %s is skipped: %s", entry["video"], entry["reason"])
        if new:
            log.warning("%d videos skipped so far", len(self._quarantined))

    def _on_failure(self, message: str) -> None:
        self._failure = self._failure or message

    def _on_summary(self, summary: Mapping[str, Any]) -> None:
        self._summary = summary

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask the workers to save and end; a second one ends at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.stopped_by is not None:
                raise KeyboardInterrupt
            self.stopped_by = signal.Signals(number)
            log.warning("%s: saving a checkpoint, then stopping", self.stopped_by.name)
            self.mailbox.ask_to_stop.remote()

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Fit(threading.Thread):
    """`trainer.fit()` beside the main thread, which has signals and messages to attend to."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self.trainer = trainer
        self.result: Result | None = None
        self.error: TrainingFailedError | None = None

    def run(self) -> None:
        try:
            self.result = self.trainer.fit()
        except TrainingFailedError as error:
            self.error = error


def _cause(error: TrainingFailedError) -> str:
    """The last line that says something: Ray's message is a page of traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
