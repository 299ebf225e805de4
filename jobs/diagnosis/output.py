"""The findings on paper: lines to read, and JSON."""

from __future__ import annotations

import json
import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO

from jobs.diagnosis.finding import Finding, Level, worst
from taehv.credentials import hide_credentials, in_all_texts

SCHEMA_VERSION = 1
"""Grows when a key of the JSON form changes its meaning or goes; docs/doctor.md describes it."""

WIDTH = 100
MARGIN = 30

_COLORS = {Level.OK: "32", Level.SKIPPED: "2", Level.WARNING: "33", Level.FAILURE: "31"}

_VERDICTS = {
    Level.OK: "ready",
    Level.SKIPPED: "ready, as far as could be seen without nodes to look at",
    Level.WARNING: "it will work, with the warnings above",
    Level.FAILURE: "not ready: mend what is marked FAILURE",
}


def format_finding(finding: Finding, colors: bool) -> str:
    """A finding in one line or a few: level, area, figure, what it means, what to do."""
    word = f"{finding.level:<8}"
    if colors:
        word = f"\x1b[{_COLORS[finding.level]}m{word}\x1b[0m"
    text = f"{finding.figure}: {finding.message}" if finding.figure else finding.message
    lines = _wrap(hide_credentials(text))
    if finding.advice:
        lines += _wrap(hide_credentials(f"-> {finding.advice}"))
    margin = "\n" + " " * MARGIN
    return f"{word} {finding.area:<{MARGIN - 10}} {margin.join(lines)}"


def format_verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    counted = Counter(finding.level for finding in findings)
    counts = ", ".join(f"{counted[level]} {level}" for level in Level if counted[level])
    return f"{counts}; {_VERDICTS[worst(findings)]}"


def to_json(findings: Sequence[Finding], address: str) -> str:
    """The machine-readable form."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "verdict": worst(findings),
        "address": address,
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(in_all_texts(hide_credentials, content), indent=2)


def wants_colors(stream: IO[str]) -> bool:
    """Only a terminal, and not one whose user has said no (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _wrap(text: str) -> list[str]:
    # Paths and addresses are to be copied: they are not torn apart.
    return textwrap.wrap(text, WIDTH - MARGIN, break_long_words=False, break_on_hyphens=False)
