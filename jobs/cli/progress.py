"""How far a run, or a job over many videos, is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from taehv.interfaces import Row

log = logging.getLogger(__name__)

LOG_SECONDS = 10.0
"""Between two log lines."""


class _Progress:
    """A bar on a terminal; elsewhere a log line every `LOG_SECONDS`."""

    def __init__(self, total: int, unit: str, done: int = 0, title: str = "") -> None:
        """title: of a bar that goes when it is done."""
        self._total = total
        self._on_terminal = sys.stderr.isatty()
        self._last_line = 0.0
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=unit,
            desc=title or None,
            leave=not title,
            disable=not self._on_terminal,
            dynamic_ncols=True,
        )
        self._redirect = logging_redirect_tqdm()
        self._redirect.__enter__()

    def close(self) -> None:
        self._bar.close()
        self._redirect.__exit__(None, None, None)

    def _update_bar(self, done: int, note: str) -> bool:
        """Gives whether a log line is due."""
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        due = not self._on_terminal and time.monotonic() - self._last_line > LOG_SECONDS
        if due:
            self._last_line = time.monotonic()
        return due

    def _format_left(self, done: int, per_second: float) -> str:
        left = int((self._total - done) / per_second)
        return f"{left // 60}:{left % 60:02d} left"


class TrainingProgress(_Progress):
    """Shows how far a run is, how fast it goes, and how long it will take."""

    def __init__(self, max_steps: int) -> None:
        super().__init__(max_steps, "step")
        self._first: tuple[int, float] | None = None
        self._loss = self._skipped = ""

    def step(self, step: int) -> None:
        if self._first is None:
            # A resumed run's rate is taken over the steps that it made itself.
            self._first = (step, time.monotonic())
            self._bar.initial = self._bar.n = step
            self._bar.unpause()
        note = self._loss + self._skipped
        if self._update_bar(step, note.lstrip(", ")):
            log.info("step %d of %d%s%s", step, self._total, self._format_pace(step), note)

    def row(self, row: Row) -> None:
        if "train/reconstruction_loss" in row:
            self._loss = f", reconstruction loss {row['train/reconstruction_loss']:.5f}"
        if "val/psnr" in row:
            log.info(
                "step %d validation: PSNR %.2f dB, SSIM %.3f; averaged weights %.2f dB, %.3f",
                row["step"],
                row["val/psnr"],
                row["val/ssim"],
                row["val_ema/psnr"],
                row["val_ema/ssim"],
            )

    def workers_placed(self, placement_group: object) -> None:
        """Does nothing: a sweep, which may outlive a trial, keeps what its workers hold."""

    def skipped(self, videos: int) -> None:
        """How many videos have turned out to be unusable by now."""
        self._skipped = f", {videos} videos skipped"

    def _format_pace(self, step: int) -> str:
        assert self._first is not None
        steps, seconds = step - self._first[0], time.monotonic() - self._first[1]
        if not steps:
            return ""
        rate = steps / seconds
        return f" ({rate:.2f} steps/s, {self._format_left(step, rate)})"


class VideoProgress(_Progress):
    """Counts videos and frames.

    Args:
        videos: of the whole job.
        done: those that are done already when it starts.
    """

    def __init__(self, videos: int, done: int) -> None:
        super().__init__(videos, "video", done)
        self._before, self._done = done, done
        self._frames = self._unusable = 0
        self._start = self._last_line = time.monotonic()

    def add(self, videos: int, frames: int, unusable: int) -> None:
        """Count more; `videos` are those that could be used."""
        self._done += videos + unusable
        self._frames += frames
        self._unusable += unusable
        note = f"{self._per_second(self._frames):.0f} frames/s"
        note += f", {self._unusable} unusable" if self._unusable else ""
        if self._update_bar(self._done, note):
            left = self._format_left(self._done, self._per_second(self._done - self._before))
            log.info("%d of %d videos (%s, %s)", self._done, self._total, note, left)

    def _per_second(self, count: int) -> float:
        return count / max(time.monotonic() - self._start, 1e-3)


class FrameProgress(_Progress):
    """Counts the frames of one video."""

    def __init__(self, video: str, frames: int) -> None:
        super().__init__(frames, "frame", title=video)
        self._video, self._done = video, 0
        self._start = self._last_line = time.monotonic()

    def add(self, frames: int) -> None:
        """Count more."""
        self._done += frames
        if self._update_bar(self._done, ""):
            rate = self._done / max(time.monotonic() - self._start, 1e-3)
            left = self._format_left(self._done, rate)
            pace = f"{rate:.2f} frames/s, {left}"
            log.info("%s: frame %d of %d (%s)", self._video, self._done, self._total, pace)
