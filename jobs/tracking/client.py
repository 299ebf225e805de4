"""MLflow's client: how it is set up, what it raises, and whether its store can be used."""

import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.tracking.config import TrackingConfig
from jobs.tracking.stores import format_error, probe_sqlite, uri_of
from taehv.credentials import without_credentials


def find_fault(config: TrackingConfig, run_dir: Path) -> tuple[str, str]:
    """The store in which a run in `run_dir` would be shown, and why it cannot be used; "" where it
    can. Nothing is written there."""
    uri = uri_of(config, run_dir.absolute())
    place = without_credentials(uri)
    quieten()
    from mlflow import MlflowClient

    try:
        if uri.startswith("sqlite:///"):
            file = Path(uri.removeprefix("sqlite:///"))
            folder = next(parent for parent in file.parents if parent.is_dir())
            if not os.access(file if file.exists() else folder, os.W_OK):
                return place, "it cannot be written there"
            if file.exists():
                probe_sqlite(uri)
        else:
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except store_errors() as error:
        return place, format_error(error, uri).splitlines()[0]
    return place, ""


def store_errors() -> tuple[type[Exception], ...]:
    """What a store that is down, full, locked or unwritable raises, or one whose client is not
    installed."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    own = (MlflowException, RequestException, SQLAlchemyError, sqlite3.Error, OSError, ImportError)
    try:
        # Of a server whose clients send files to S3 themselves.
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return own
    return (*own, Boto3Error, BotoCoreError, ClientError)


def quieten() -> None:
    """Settings that MLflow reads from the environment and from its loggers; the user's go first."""
    # A training run reports to nobody but its user.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow's own patience, 7 tries of 120 s each, would stop the driver for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    # The summary says where the run is to be seen.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

    import mlflow  # noqa: F401  (its import sets the levels below anew)

    # Failures reach `Tracker` as exceptions and become one warning, not a traceback each.
    for name, level in {
        "mlflow": logging.CRITICAL,
        "alembic": logging.WARNING,
        "urllib3.connectionpool": logging.ERROR,
    }.items():
        logging.getLogger(name).setLevel(level)


def register_version(
    client: Any, run_id: str | None, model: str, file: str, tags: Mapping[str, str]
) -> None:
    """Make a file of a run's artifacts a version of a registered model, unless it is one already;
    that is given the tags then."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{model}'"):
        if version.run_id == run_id and version.tags.get("sha256") == tags.get("sha256"):
            for name, value in tags.items():
                client.set_model_version_tag(model, version.version, name, value)
            return
    source = f"{client.get_run(run_id).info.artifact_uri}/model/{file}"
    client.create_model_version(model, source, run_id=run_id, tags=dict(tags))
