"""What was tried and what came of it, for the table at the end."""

import os
from collections import Counter
from pathlib import Path

_trials: dict[str, Counter[str]] = {}


def note(fault: str, outcome: str, trials: int = 1) -> None:
    """Count `trials` of a fault that had this outcome."""
    _trials.setdefault(fault, Counter())[outcome] += trials


def trials() -> dict[str, dict[str, int]]:
    """What was noted in this process: fault, outcome, count."""
    return {fault: dict(outcomes) for fault, outcomes in _trials.items()}


def add(others: dict[str, dict[str, int]]) -> None:
    """What another process noted."""
    for fault, outcomes in others.items():
        for outcome, count in outcomes.items():
            note(fault, outcome, count)


def table() -> list[str]:
    """Markdown, a line each; empty where nothing was tried."""
    if not _trials:
        return []
    lines = ["| fault | trials | outcome |", "|---|---|---|"]
    for fault, outcomes in _trials.items():
        told = "; ".join(f"{count}: {outcome}" for outcome, count in outcomes.items())
        if len(outcomes) == 1:
            told = next(iter(outcomes))
        lines.append(f"| {fault} | {outcomes.total()} | {told} |")
    return lines


def write_table() -> None:
    """To the file that FAULTS_TABLE names, if it names one."""
    file = os.environ.get("FAULTS_TABLE")
    if file and _trials:
        Path(file).write_text("\n".join(table()) + "\n")
