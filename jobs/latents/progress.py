"""How far a job over many videos is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0
"""Between two lines of a log."""


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
