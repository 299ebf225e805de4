"""How far a run, or a job over many videos, is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from taehv.interfaces import Row

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0
"""Between two lines of a log."""


class Progress:
    """Shows how far a run is, how fast it goes, and how long it will take."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.on_terminal = sys.stderr.isatty()
        self._first: tuple[int, float] | None = None
        self._last_line = 0.0
        self._loss = self._skipped = ""
        self._bar = tqdm(
            total=max_steps, unit="step", disable=not self.on_terminal, dynamic_ncols=True
        )
        self._redirect = logging_redirect_tqdm()
        self._redirect.__enter__()

    def step(self, step: int) -> None:
        if self._first is None:
            # A resumed run's rate is taken over the steps it made itself.
            self._first = (step, time.monotonic())
            self._bar.initial = self._bar.n = step
            self._bar.unpause()
        self._bar.update(step - self._bar.n)
        if not self.on_terminal and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            log.info(
                "step %d of %d%s%s%s",
                step,
                self.max_steps,
                self._pace(step),
                self._loss,
                self._skipped,
            )

    def row(self, row: Row) -> None:
        if "train/reconstruction_loss" in row:
            self._loss = f", reconstruction loss {row['train/reconstruction_loss']:.5f}"
            self._show_postfix()
        if "val/psnr" in row:
            log.info(
                "step %d validation: PSNR %.2f dB, SSIM %.3f; averaged weights %.2f dB, %.3f",
                row["step"],
                row["val/psnr"],
                row["val/ssim"],
                row["val_ema/psnr"],
                row["val_ema/ssim"],
            )

    def skipped(self, videos: int) -> None:
        """So many videos have turned out to be unusable."""
        self._skipped = f", {videos} videos skipped"
        self._show_postfix()

    def close(self) -> None:
        self._bar.close()
        self._redirect.__exit__(None, None, None)

    def _show_postfix(self) -> None:
        self._bar.set_postfix_str((self._loss + self._skipped).lstrip(", "), refresh=False)

    def _pace(self, step: int) -> str:
        assert self._first is not None
        steps, seconds = step - self._first[0], time.monotonic() - self._first[1]
        if not steps:
            return ""
        rate = steps / seconds
        left = int((self.max_steps - step) / rate)
        return f" ({rate:.2f} steps/s, {left // 60}:{left % 60:02d} left)"


class VideoProgress:
    """Counts videos and frames; a context manager's worth of state, closed at the end."""

    def __init__(self, videos: int, done: int) -> None:
        """done: videos of an earlier life of the job."""
        self._videos, self._before, self._done = videos, done, done
        self._frames = self._unusable = 0
        self._start = self._last_line = time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=videos,
            initial=done,
            unit="video",
            disable=not self._on_terminal,
            dynamic_ncols=True,
        )
        self._redirect = logging_redirect_tqdm()
        self._redirect.__enter__()

    def add(self, videos: int, frames: int, unusable: int) -> None:
        """So many more; `videos` are those that could be used."""
        self._done += videos + unusable
        self._frames += frames
        self._unusable += unusable
        self._bar.set_postfix_str(self._told(), refresh=False)
        self._bar.update(videos + unusable)
        if not self._on_terminal and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            left = int((self._videos - self._done) / self._rate(self._done - self._before))
            log.info(
                "%d of %d videos (%s, %d:%02d left)",
                self._done,
                self._videos,
                self._told(),
                left // 60,
                left % 60,
            )

    def close(self) -> None:
        self._bar.close()
        self._redirect.__exit__(None, None, None)

    def _told(self) -> str:
        unusable = f", {self._unusable} unusable" if self._unusable else ""
        return f"{self._rate(self._frames):.0f} frames/s{unusable}"

    def _rate(self, count: int) -> float:
        return count / max(time.monotonic() - self._start, 1e-3)
