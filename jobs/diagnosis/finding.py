"""What a check comes to: one line for a person, one object for a program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How good it is, from the best to the worst; the words are printed."""

    OK = "OK"
    SKIPPED = "SKIPPED"
    """There is nothing to look at yet; it says nothing against the set-up, nor for it."""
    WARNING = "WARNING"
    FAILURE = "FAILURE"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    area: str
    """What was looked at, in a word or two."""
    figure: str
    """What was measured or counted, with its unit; may be empty."""
    message: str
    """What that means; of a bad finding, what is wrong."""
    advice: str = ""
    """What to do; empty where nothing has to be done."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The figures for a program, in bytes, seconds and numbers, by names that end in the unit."""

    def __post_init__(self) -> None:
        assert self.advice or self.level in (Level.OK, Level.SKIPPED), self


def ok(area: str, message: str, /, figure: str = "", **values: Any) -> Finding:
    return Finding(Level.OK, area, figure, message, values=values)


def skipped(area: str, message: str, /, figure: str = "", **values: Any) -> Finding:
    return Finding(Level.SKIPPED, area, figure, message, values=values)


def warning(area: str, message: str, advice: str, /, figure: str = "", **values: Any) -> Finding:
    return Finding(Level.WARNING, area, figure, message, advice, values)


def failure(area: str, message: str, advice: str, /, figure: str = "", **values: Any) -> Finding:
    return Finding(Level.FAILURE, area, figure, message, advice, values)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level among the findings; OK where there are none."""
    return max((f.level for f in findings), key=list(Level).index, default=Level.OK)


def number_of(number: float, thing: str) -> str:
    """A number of things: "1 node", "2 nodes"."""
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number:g} {thing}{ending}"


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"
