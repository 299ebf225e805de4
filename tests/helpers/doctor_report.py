"""The JSON of jobs/doctor.py, for those who ask it about one area after the other."""

from collections.abc import Mapping
from typing import Any

from jobs.diagnosis.finding import Level


def worst_by_area(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Its findings by area; of several in one area the worst."""
    order = list(Level)
    findings = sorted(report["findings"], key=lambda finding: order.index(finding["level"]))
    return {finding["area"]: finding for finding in findings}
