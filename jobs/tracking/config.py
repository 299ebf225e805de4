"""The settings of tracking, which need no MLflow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is shown."""

    enabled: bool = True
    """Off: nothing of MLflow is touched or imported."""

    experiment: str = "taehv"
    """Name of the experiment that groups the runs; made where it does not exist."""

    run_name: str = ""
    """Name of the run. Empty: the name of its folder."""

    uri: str = ""
    """Tracking store. Empty: MLFLOW_TRACKING_URI, else an SQLite file beside the run folders. A
    password in it is not written down: who goes on with the run gives it again, or by
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""

    retry_seconds: float = 60.0
    """A store that is down is not tried again before this, since every try may have to time out."""

    tensorboard: bool = False
    """Event files for TensorBoard besides, with the same names, in the run folder's `tensorboard/`;
    also where `enabled` is off."""
