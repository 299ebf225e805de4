"""Tracking stores, as far as that takes no MLflow: addresses, run ids, rows as they are sent."""

import json
import logging
import os
import shlex
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs.tracking.config import TrackingConfig
from taehv.credentials import hide_credentials, without_credentials

logger = logging.getLogger(__name__)

Measured = tuple[str, float, int, int]
"""Name, value, time in ms since 1970, step."""

LONGEST_PARAMETER = 6000
"""Characters of a parameter's value that MLflow keeps; what is longer is cut off here."""


def measurements(row: Mapping[str, Any], step: int) -> list[Measured]:
    """The numbers of a row, stamped now; a resent value with an old stamp is stored once."""
    now = time.time_ns() // 1_000_000
    return [
        (name, float(value), now, step)
        for name, value in row.items()
        if name != "step" and isinstance(value, (int, float))
    ]


def read_run_id(path: Path) -> str | None:
    """The run id that a run folder keeps; None where it keeps none that can be read."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s): beginning a new MLflow run", path, error)
        return None


def probe_sqlite(uri: str) -> None:
    """Open the database file once: where that fails, MLflow would go on trying for 100 s."""
    from sqlalchemy.engine import make_url

    path = make_url(uri).database
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")


def artifacts_beside(uri: str) -> str | None:
    """Where files of an SQLite store lie; None for a store that knows a place itself."""
    from sqlalchemy.engine import make_url

    database = make_url(uri).database if uri.startswith("sqlite:") else None
    return (Path(database).absolute().parent / "mlartifacts").as_uri() if database else None


def open_hint(uri: str) -> str:
    """What to type to see what a store holds."""
    uri = without_credentials(uri)
    if uri.startswith(("http://", "https://")):
        return f"open {uri}"
    # Without these two settings the server starts about nine processes of 230 MB.
    return (
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 "
        f"--backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --port 5000"
    )


def uri_of(config: TrackingConfig, run_dir: Path) -> str:
    named = config.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return named or f"sqlite:///{run_dir.parent / 'mlflow.db'}"


def storable(value: str) -> str:
    """A parameter's or tag's value as it may be kept elsewhere."""
    return hide_credentials(value)[:LONGEST_PARAMETER]


def format_error(error: Exception, uri: str) -> str:
    """The message of a store's error, without credentials. The store's address is replaced as a
    whole, since a password with a space in it ends an address for `hide_credentials`."""
    return hide_credentials(str(error).replace(uri, without_credentials(uri)))
