"""MLflow, and nothing else that knows of it.

Only the driver of a run holds a `Tracker`. Metrics are in the run's JSONL before they come here, so
a store that is down costs a warning and never the run: what could not be delivered is kept, tried
again later and once more at the end, and on a resume `catch_up` sends what the store still lacks.
"""

import json
import logging
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from jobs.tracking.client import quieten, register_version, store_errors
from jobs.tracking.config import TrackingConfig
from jobs.tracking.stores import (
    Measured,
    artifacts_beside,
    format_error,
    measurements,
    open_hint,
    probe_sqlite,
    read_run_id,
    storable,
    uri_of,
)
from jobs.tracking.tensorboard import EventFile

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
METRICS_PER_BATCH = 1000
PARAMETERS_PER_BATCH = 100
"""MLflow refuses larger batches."""

REQUEST = "request"
"""The tag by which a tracker finds the run that it asked for, where the answer was lost."""


class Tracker:
    """One MLflow run, followed from its start to its end."""

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        parent_run_id: str | None = None,
    ) -> None:
        """Begin a run, or continue the one that this run folder began.

        run_dir: the run's local folder. It keeps the run's id in `mlflow.json`, so that a resume
        continues the same MLflow run; `run_id` goes before it.
        parameters: the resolved config under dotted names. On a resume MLflow holds on to the
        first value of each; one that has changed since is recorded as the tag `changed.<name>`.
        parent_run_id: the run that this one is shown beneath, such as a sweep's.

        A store that cannot be reached is a warning, and is tried again later.
        """
        self._config = config
        self._run_dir = run_dir.absolute()
        self._id_file = self._run_dir / "mlflow.json"
        self._parameters = {name: storable(str(value)) for name, value in parameters.items()}
        self._tags = {name: storable(value) for name, value in (tags or {}).items()}
        if parent_run_id is not None:
            self._tags["mlflow.parentRunId"] = parent_run_id
        self._tags[REQUEST] = uuid.uuid4().hex
        self._uri = uri_of(config, self._run_dir)
        self.run_id = run_id
        """Id of the MLflow run; None until the store has been reached."""
        self.status_before: Status | None = None
        """Of a run that is continued: how it had ended."""
        self._events = EventFile(self._run_dir / "tensorboard") if config.tensorboard else None
        self._client: Any = None
        self._down = False
        self._retry_at = 0.0
        # What waits for delivery.
        self._recorded: list[Mapping[str, Any]] = []
        self._metrics: list[Measured] = []
        self._artifacts: list[tuple[Path, str]] = []
        self._new_tags: list[tuple[str, str]] = []
        self._versions: list[tuple[str, str, dict[str, str]]] = []
        self._end: list[Status] = []
        if config.enabled:
            quieten()
            self._deliver()

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Send one row of metrics, at this step. A "step" in the row is not a metric.

        Not-a-number arrives as such; MLflow stores an infinity as the largest finite float.
        """
        if self._events is not None:
            self._events.log(row, step)
        if self._config.enabled:
            self._metrics += measurements(row, step)
            self._deliver()

    def catch_up(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Send what the store lacks of these rows, each with its "step": a resumed run's JSONL."""
        if self._config.enabled:
            self._recorded += rows
            self._deliver()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Send a file, into this folder of the run's artifacts."""
        if self._config.enabled:
            self._artifacts.append((path.absolute(), folder))
            self._deliver()

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        if self._config.enabled:
            self._new_tags.append((name, storable(value)))
            self._deliver()

    def register(self, model: str, weights: Path, tags: Mapping[str, str]) -> None:
        """Send a file of weights, and make it a version of a registered model, with these tags.

        A version of this run with the same tag `sha256` is given the tags instead.
        """
        if self._config.enabled:
            self._artifacts.append((weights.absolute(), "model"))
            self._versions.append((model, weights.name, dict(tags)))
            self._deliver()

    def finish(self, status: Status = "FINISHED") -> None:
        """Deliver what is left, and end the run."""
        if self._events is not None:
            self._events.close()
        if not self._config.enabled:
            return
        self._end = [status]
        self._retry_at = 0.0
        self._deliver()
        # A request that the server was late with may have been carried out since.
        if self._client is not None and not self._down:
            self._remove_twins(self._client)
        if self._end or self._artifacts or self._versions:
            logger.warning(
                "MLflow did not take %d values and %d files%s; the metrics are in the run's "
                "folder, and resuming the run sends them",
                len(self._metrics) + sum(map(len, self._recorded)),
                len(self._artifacts),
                f", nor the run's end ({status})" if self._end else "",
            )

    def open_hint(self) -> str:
        """What to type to see the run; empty where tracking is off."""
        return open_hint(self._uri) if self._config.enabled else ""

    def _deliver(self) -> None:
        """Send all that waits, in order; what fails stays."""
        if time.monotonic() < self._retry_at:
            return
        try:
            self._open()
            self._send()
        except store_errors() as error:
            self._retry_at = time.monotonic() + self._config.retry_seconds
            if not self._down:
                logger.warning(
                    "MLflow failed, training goes on without it; what it did not take is kept and "
                    "sent later: %s",
                    format_error(error, self._uri),
                )
            self._down = True
        else:
            if self._down:
                logger.warning("MLflow works again and has caught up")
            self._down = False

    def _open(self) -> None:
        """Have a client and a run, as far as that has not been done."""
        if self._client is not None:
            return
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        if self._uri.startswith("sqlite:"):
            probe_sqlite(self._uri)
        client = MlflowClient(tracking_uri=self._uri)
        run = self._running(client) or self._new(client)
        self.run_id = run.info.run_id
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._id_file.write_text(json.dumps({"run_id": self.run_id}) + "\n", encoding="utf-8")
        self._remove_twins(client)

        known = run.data.params
        new = [Param(k, v) for k, v in self._parameters.items() if k not in known]
        for first in range(0, len(new), PARAMETERS_PER_BATCH):
            client.log_batch(self.run_id, params=new[first : first + PARAMETERS_PER_BATCH])
        for name, value in self._parameters.items():
            if known.get(name, value) != value:
                client.log_batch(self.run_id, tags=[RunTag(f"changed.{name}", value)])
        self._client = client

    def _running(self, client: Any) -> Any:
        """The run to continue, marked as running; None where there is none."""
        from mlflow.exceptions import MlflowException

        run_id = self.run_id or read_run_id(self._id_file)
        if run_id is None:
            return None
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("MLflow holds no run %s (another store?): beginning a new one", run_id)
            return None
        if run.info.lifecycle_stage != "active":
            logger.warning("MLflow run %s was deleted: beginning a new one", run_id)
            return None
        self.status_before = run.info.status
        client.update_run(run_id, status="RUNNING")
        return run

    def _new(self, client: Any) -> Any:
        """A new run in the experiment, which is made where it does not exist."""
        from mlflow.exceptions import MlflowException

        name = self._config.experiment
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # A database has no place of its own for files; a server does.
            place = artifacts_beside(self._uri)
            try:
                client.create_experiment(name, artifact_location=place)
            except MlflowException as error:
                # Another run of the same sweep was faster.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment = client.get_experiment_by_name(name)
        # Of an earlier try, whose answer was lost.
        asked_for = self._asked_for(client)
        if asked_for:
            return asked_for[0]
        return client.create_run(
            experiment.experiment_id,
            tags=self._tags,
            run_name=self._config.run_name or self._run_dir.name,
        )

    def _asked_for(self, client: Any) -> list[Any]:
        """The runs that were made for this tracker, the oldest first."""
        experiment = client.get_experiment_by_name(self._config.experiment)
        if experiment is None:
            return []
        found = client.search_runs(
            [experiment.experiment_id],
            f"tags.{REQUEST} = '{self._tags[REQUEST]}'",
            order_by=["attributes.start_time"],
        )
        return list(found)

    def _remove_twins(self, client: Any) -> None:
        """Delete all runs but one that were made for this tracker: MLflow's client asks a server
        that answers too late a second time, and the server makes a run for each."""
        try:
            for run in self._asked_for(client):
                if run.info.run_id != self.run_id:
                    client.delete_run(run.info.run_id)
        except store_errors() as error:
            logger.warning("MLflow may show this run twice: %s", format_error(error, self._uri))

    def _send(self) -> None:
        """Deliver to the open run. What has gone leaves its queue at once."""
        from mlflow.entities import Metric

        if self._recorded:
            self._metrics[:0] = self._missing_values(self._recorded)
            self._recorded.clear()
        while self._metrics:
            batch = [Metric(*measured) for measured in self._metrics[:METRICS_PER_BATCH]]
            self._client.log_batch(self.run_id, metrics=batch)
            del self._metrics[:METRICS_PER_BATCH]
        while self._new_tags:
            self._client.set_tag(self.run_id, *self._new_tags[0])
            del self._new_tags[0]
        if self._end:
            self._client.set_terminated(self.run_id, *self._end)
            self._end.clear()
        # Last, since files go to another place, which may be down when the store itself is not.
        while self._artifacts:
            path, folder = self._artifacts[0]
            if path.is_file():
                self._client.log_artifact(self.run_id, str(path), folder or None)
            else:
                logger.warning("%s is not there to be sent to MLflow", path)
            del self._artifacts[0]
        while self._versions:
            register_version(self._client, self.run_id, *self._versions[0])
            del self._versions[0]

    def _missing_values(self, rows: Iterable[Mapping[str, Any]]) -> list[Measured]:
        """The values of these rows whose name has nothing at their step in the store."""
        measured = [value for row in rows for value in measurements(row, int(row["step"]))]
        held = {
            (name, metric.step)
            for name in {name for name, *_ in measured}
            for metric in self._client.get_metric_history(self.run_id, name)
        }
        held |= {(name, step) for name, _, _, step in self._metrics}
        return [value for value in measured if (value[0], value[3]) not in held]
