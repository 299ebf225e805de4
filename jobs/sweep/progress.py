"""Shows the trials while they run: a table that refreshes on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from jobs.sweep.ledger import Record
from taehv.interfaces import Row

log = logging.getLogger(__name__)

LOG_SECONDS = 15.0
"""Between two log lines about trials that run."""

MAX_ROWS = 30
"""The table shows so many trials, the latest."""


class TrialProgress:
    def __init__(self, metric: str, max_steps: int, trials: int) -> None:
        self._metric, self._max_steps, self.trials = metric, max_steps, trials
        self._records: dict[int, Record] = {}
        self._steps: dict[int, int] = {}
        self._scores: dict[int, float] = {}
        self._started = self._last_line = time.monotonic()
        self._live: Live | None = None
        if sys.stderr.isatty():
            self._live = Live(
                console=Console(stderr=True), get_renderable=self._table, refresh_per_second=2
            )
            self._live.start()
            self._redirect_log()

    def add_earlier_trials(self, records: Iterable[Record]) -> None:
        for record in records:
            self._records[record.number] = record
            self._steps[record.number] = record.step
        counts = Counter(record.status for record in self._records.values())
        if counts:
            text = ", ".join(f"{count} {status}" for status, count in counts.items())
            log.info("going on with a sweep of which there are: %s", text)

    def update(self, record: Record) -> None:
        """To be called when a trial has begun or ended."""
        before = self._records.get(record.number)
        self._records[record.number] = record
        self._steps[record.number] = max(record.step, self._steps.get(record.number, 0))
        if self._live is None and (before is None or before.status != record.status):
            score = self._format_score(record.number)
            log.info("trial %s %s%s", record.name, _format_state(record), score)

    def step(self, number: int, step: int) -> None:
        self._steps[number] = step
        running = [r for r in self._records.values() if r.status == "running"]
        if self._live is None and time.monotonic() - self._last_line > LOG_SECONDS and running:
            self._last_line = time.monotonic()
            text = ", ".join(
                f"trial {r.name} step {self._steps[r.number]} of {self._max_steps}"
                f"{self._format_score(r.number)}"
                for r in running
            )
            log.info("%s; %s", self._format_counts(), text)

    def row(self, number: int, row: Row) -> None:
        if self._metric in row:
            self._scores[number] = row[self._metric]

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._redirect_log()

    def _redirect_log(self) -> None:
        """Send log lines above the table while there is one."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)

    def _format_score(self, number: int) -> str:
        score = self._scores.get(number)
        return "" if score is None else f", {self._metric} {score:.4g}"

    def _format_counts(self) -> str:
        ended = sum(r.status in ("finished", "pruned", "failed") for r in self._records.values())
        minutes = (time.monotonic() - self._started) / 60
        return f"{ended} of {self.trials} trials done, {minutes:.1f} min"

    def _table(self) -> Table:
        table = Table(title=self._format_counts(), title_justify="left")
        for name in ("trial", "status", "step", self._metric, "seed", "settings"):
            table.add_column(name, justify="left" if name in ("status", "settings") else "right")
        for number in sorted(self._records)[-MAX_ROWS:]:
            record = self._records[number]
            score = self._scores.get(number)
            table.add_row(
                record.name,
                record.status,
                f"{self._steps[number]} / {self._max_steps}",
                "" if score is None else f"{score:.4g}",
                str(record.seed),
                _short_settings(record),
            )
        return table


def _short_settings(record: Record) -> str:
    """The settings by which a trial differs from the others; those that are numbers without their
    section."""
    return record.label or ", ".join(
        f"{key.split('.')[-1]} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in record.settings.items()
        if key != "train.seed"
    )


def _format_state(record: Record) -> str:
    if record.status == "running":
        begun = "goes on" if record.attempts > 1 else "begins"
        return f"{begun}: {_short_settings(record)}, seed {record.seed}"
    why = f" ({record.error})" if record.error else ""
    return f"{record.status} at step {record.step}, {record.seconds:.0f} s{why}"
