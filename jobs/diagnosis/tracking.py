"""Whether MLflow answers."""

from __future__ import annotations

from jobs.diagnosis.finding import Finding, Level
from jobs.diagnosis.words import plain_connection

AREA = "MLflow"


def judge_tracking(enabled: bool, place: str, error: str) -> list[Finding]:
    """`place`: where the store is; `error`: why it cannot be used, empty where it can."""
    if not enabled:
        return [Finding(Level.OK, AREA, "", "not wanted (tracking.enabled)")]
    if error:
        return [
            Finding(
                Level.FAILURE,
                AREA,
                "",
                f"{place} cannot be used: {plain_connection(error)}. A run would train without "
                "it, and keep its metrics in its own folder",
                "start the server (cloud/start_mlflow.sh on the head), or correct --tracking.uri "
                "or MLFLOW_TRACKING_URI",
                {"uri": place},
            )
        ]
    return [Finding(Level.OK, AREA, "", place, values={"uri": place})]
