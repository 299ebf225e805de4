"""The tracker against a real SQLite store, and against stores that are not there."""

import json
import math
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.tracking.client import find_fault
from jobs.tracking.config import TrackingConfig
from jobs.tracking.tracker import Tracker

NO_WAIT = TrackingConfig(retry_seconds=0)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store, and no patience, from the environment of whoever runs the tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and no run: making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def run_dir(tmp_path: Path, empty_store: Path) -> Path:
    """A run folder that is yet to be made, in a folder that has a store."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    return tmp_path / "runs" / "a"


def store(run_dir: Path) -> Any:
    """A client of the default store, not the tracker's own."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{run_dir.parent / 'mlflow.db'}")


def history(run_dir: Path, run_id: str | None, name: str) -> list[tuple[int, float]]:
    metrics = store(run_dir).get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in metrics)


@contextmanager
def no_database(run_dir: Path) -> Iterator[None]:
    """A folder lies where the database file would be: no process, root's either, can open it."""
    database = run_dir.parent / "mlflow.db"
    database.rename(database.with_suffix(".away"))
    database.mkdir()
    yield
    database.rmdir()
    database.with_suffix(".away").rename(database)


@contextmanager
def no_metrics_table(run_dir: Path) -> Iterator[None]:
    """A store that answers and takes no metrics: their table has another name."""

    def rename(old: str, new: str) -> None:
        with closing(sqlite3.connect(run_dir.parent / "mlflow.db")) as connection, connection:
            connection.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename("metrics", "metrics_away")
    yield
    rename("metrics_away", "metrics")


def test_names_and_values_come_back_equal(run_dir: Path, tmp_path: Path) -> None:
    parameters = {"train.max_steps": 10, "data.root": "", "optim.betas": (0.9, 0.95), "x.y": None}
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"pixels")
    tracker = Tracker(TrackingConfig(), run_dir, parameters, {"purpose": "test"})
    for step in (1, 2, 3):
        tracker.log({"step": step, "train/loss": 1 / step, "val_ema/psnr": 20.0 + step}, step)
    tracker.artifact(picture, "pictures")
    tracker.finish("FINISHED")

    run = store(run_dir).get_run(tracker.run_id)
    assert run.data.params == {name: str(value) for name, value in parameters.items()}
    assert run.data.tags["purpose"] == "test"
    assert run.info.run_name == "a"
    assert run.info.status == "FINISHED"
    assert run.data.metrics.keys() == {"train/loss", "val_ema/psnr"}
    assert history(run_dir, tracker.run_id, "train/loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert history(run_dir, tracker.run_id, "val_ema/psnr") == [(1, 21.0), (2, 22.0), (3, 23.0)]
    artifacts = run_dir.parent / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "pictures/picture.png").read_bytes() == b"pixels"


def test_more_parameters_and_metrics_than_one_batch_holds(run_dir: Path) -> None:
    parameters = {f"p.{i}": i for i in range(250)} | {"long": "x" * 7000}
    tracker = Tracker(TrackingConfig(), run_dir, parameters)
    tracker.log({f"m/{i}": float(i) for i in range(2300)}, step=7)

    data = store(run_dir).get_run(tracker.run_id).data
    assert len(data.params) == 251
    assert data.params["long"] == "x" * 6000
    assert data.metrics == {f"m/{i}": float(i) for i in range(2300)}


def test_values_that_are_not_finite(run_dir: Path) -> None:
    tracker = Tracker(TrackingConfig(), run_dir, {})
    tracker.log({"nan": math.nan, "up": math.inf, "down": -math.inf}, step=1)

    metrics = store(run_dir).get_run(tracker.run_id).data.metrics
    assert math.isnan(metrics["nan"])
    assert metrics["up"] == sys.float_info.max
    assert metrics["down"] == -sys.float_info.max


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_status(run_dir: Path, status: Any) -> None:
    tracker = Tracker(TrackingConfig(run_name="mine", experiment="other"), run_dir, {})
    assert store(run_dir).get_run(tracker.run_id).info.status == "RUNNING"
    tracker.finish(status)
    info = store(run_dir).get_run(tracker.run_id).info
    assert info.status == status
    assert info.run_name == "mine"
    assert store(run_dir).get_experiment(info.experiment_id).name == "other"


def test_a_resume_continues_the_same_run(run_dir: Path) -> None:
    first = Tracker(TrackingConfig(), run_dir, {"a": 1, "b": 2})
    first.log({"train/loss": 1.0}, step=1)
    first.finish("KILLED")

    second = Tracker(TrackingConfig(), run_dir, {"a": 1, "b": 3, "c": 4})
    second.log({"train/loss": 0.5}, step=2)

    assert second.run_id == first.run_id
    run = store(run_dir).get_run(first.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"a": "1", "b": "2", "c": "4"}
    assert run.data.tags["changed.b"] == "3"
    assert history(run_dir, first.run_id, "train/loss") == [(1, 1.0), (2, 0.5)]


def test_an_id_that_is_given_goes_before_the_folders(run_dir: Path) -> None:
    first = Tracker(TrackingConfig(), run_dir, {})
    other = Tracker(TrackingConfig(), run_dir.with_name("b"), {})
    resumed = Tracker(TrackingConfig(), run_dir, {}, run_id=other.run_id)
    assert resumed.run_id == other.run_id != first.run_id


def test_an_id_that_leads_nowhere_begins_a_new_run(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir.mkdir(parents=True)
    for text in ('{"run_id": "0123456789abcdef0123456789abcdef"}', '{"run', "[]"):
        (run_dir / "mlflow.json").write_text(text)
        caplog.clear()
        tracker = Tracker(TrackingConfig(), run_dir, {})
        assert "beginning a new" in caplog.text
        assert json.loads((run_dir / "mlflow.json").read_text()) == {"run_id": tracker.run_id}

    store(run_dir).delete_run(tracker.run_id)
    again = Tracker(TrackingConfig(), run_dir, {})
    assert again.run_id != tracker.run_id
    assert "was deleted" in caplog.text


def test_a_run_may_lie_beneath_another(run_dir: Path) -> None:
    sweep = Tracker(TrackingConfig(), run_dir, {})
    trial = Tracker(TrackingConfig(), run_dir.with_name("b"), {}, parent_run_id=sweep.run_id)
    tags = store(run_dir).get_run(trial.run_id).data.tags
    assert tags["mlflow.parentRunId"] == sweep.run_id


def test_catching_up_sends_what_is_not_there(run_dir: Path) -> None:
    rows = [{"step": step, "train/loss": 1 / step} for step in range(1, 6)]
    rows[3]["val/psnr"] = 20.0
    first = Tracker(TrackingConfig(), run_dir, {})
    for row in rows[:2]:
        first.log(row, int(row["step"]))
    first.log({"train/loss": 0.25}, step=4)

    resumed = Tracker(TrackingConfig(), run_dir, {})
    resumed.catch_up(rows)
    resumed.catch_up(rows)

    expected = [(step, 1 / step) for step in range(1, 6)]
    assert history(run_dir, first.run_id, "train/loss") == expected
    assert history(run_dir, first.run_id, "val/psnr") == [(4, 20.0)]


def test_a_store_that_is_down_at_the_start_is_caught_up(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    with no_database(run_dir):
        tracker = Tracker(NO_WAIT, run_dir, {"a": 1})
        tracker.log({"train/loss": 1.0}, step=1)
        tracker.catch_up([{"step": 0, "train/loss": 2.0}, {"step": 1, "train/loss": 1.0}])
    assert time.monotonic() - began < 10
    assert caplog.text.count("MLflow failed") == 1
    assert tracker.run_id is None

    tracker.log({"train/loss": 0.5}, step=2)

    assert "has caught up" in caplog.text
    assert history(run_dir, tracker.run_id, "train/loss") == [(0, 2.0), (1, 1.0), (2, 0.5)]
    assert store(run_dir).get_run(tracker.run_id).data.params == {"a": "1"}


@pytest.mark.parametrize("late", ["asked again by MLflow", "asked again by the tracker", "at last"])
@pytest.mark.parametrize("may_delete", [True, False])
def test_a_server_that_answers_too_late_keeps_one_run(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    late: str,
    may_delete: bool,
) -> None:
    """It carries out each request that it got, the first one even after the second."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    create, requests = MlflowClient.create_run, []

    def create_late(*given: Any, **named: Any) -> Any:
        requests.append((given, named))
        run = create(*given, **named)
        if late == "asked again by the tracker":
            raise MlflowException("API request timed out")
        return create(*given, **named) if late == "asked again by MLflow" else run

    def refuse(*_: Any) -> None:
        raise MlflowException("Permission denied")

    monkeypatch.setattr(MlflowClient, "create_run", create_late)
    if not may_delete:
        monkeypatch.setattr(MlflowClient, "delete_run", refuse)
    tracker = Tracker(NO_WAIT, run_dir, {})
    for step in (1, 2):
        tracker.log({"loss": 1.0}, step)
    [(given, named)] = requests
    if late == "at last":
        create(*given, **named)
    tracker.finish()

    client = store(run_dir)
    held = client.search_runs([client.get_experiment_by_name("taehv").experiment_id])
    twins = [run for run in held if run.info.run_id != tracker.run_id]
    may_have_twins = not may_delete and late != "asked again by the tracker"
    assert len(twins) == may_have_twins
    assert ("may show this run twice" in caplog.text) == may_have_twins
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert history(run_dir, tracker.run_id, "loss") == [(1, 1.0), (2, 1.0)]


def test_a_store_that_goes_down_on_the_way_is_caught_up_at_the_end(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture, gone = tmp_path / "picture.png", tmp_path / "gone.png"
    picture.write_bytes(b"pixels")
    tracker = Tracker(TrackingConfig(retry_seconds=3600), run_dir, {})
    tracker.log({"train/loss": 1.0}, step=1)

    with no_metrics_table(run_dir):
        tracker.log({"train/loss": 0.5}, step=2)
        tracker.log({"train/loss": 0.25}, step=3)
        tracker.artifact(picture)
        tracker.artifact(gone)
    assert "MLflow failed" in caplog.text
    assert history(run_dir, tracker.run_id, "train/loss") == [(1, 1.0)]

    tracker.finish()
    assert history(run_dir, tracker.run_id, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert store(run_dir).get_run(tracker.run_id).info.status == "FINISHED"
    assert [file.path for file in store(run_dir).list_artifacts(tracker.run_id)] == ["picture.png"]
    assert "gone.png is not there" in caplog.text


def test_a_server_that_is_not_there_costs_a_warning(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        config = TrackingConfig(uri=f"http://127.0.0.1:{closed.getsockname()[1]}")
        began = time.monotonic()
        tracker = Tracker(config, run_dir, {"a": 1})
        for step in range(1000):
            tracker.log({"train/loss": 1.0, "train/learning_rate": 0.1}, step)
        tracker.finish("FAILED")
    assert time.monotonic() - began < 10
    assert "2000 values" in caplog.text
    assert not (run_dir / "mlflow.json").exists()


# In this order: MLflow keeps a client that it could make.
@pytest.mark.parametrize("installed", [False, True])
def test_files_that_s3_does_not_take_cost_a_warning(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    installed: bool,
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_MAX_ATTEMPTS": "1",
        "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    if not installed:
        monkeypatch.setitem(sys.modules, "boto3", None)
    store(run_dir).create_experiment("taehv", artifact_location="s3://bucket/files")
    tracker = Tracker(NO_WAIT, run_dir, {})
    tracker.log({"train/loss": 1.0}, 1)
    file = tmp_path / "picture.png"
    file.write_bytes(b"picture")
    tracker.artifact(file)
    assert caplog.text.count("MLflow failed, training goes on without it") == 1
    assert ("127.0.0.1:9" if installed else "boto3") in caplog.text
    assert history(run_dir, tracker.run_id, "train/loss") == [(1, 1.0)]
    tracker.tag("verdict", "WARNING")
    tracker.finish()
    assert "did not take 0 values and 1 files;" in caplog.text
    run = store(run_dir).get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["verdict"]) == ("FINISHED", "WARNING")


def test_rows_never_taken_are_sent_by_a_resume(run_dir: Path) -> None:
    rows = [{"step": step, "train/loss": float(step)} for step in range(3)]
    with no_database(run_dir):
        lost = Tracker(TrackingConfig(), run_dir, {})
        for row in rows:
            lost.log(row, int(row["step"]))
        lost.finish("KILLED")

    resumed = Tracker(TrackingConfig(), run_dir, {})
    resumed.catch_up(rows)
    assert history(run_dir, resumed.run_id, "train/loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_the_environment_names_the_store_and_the_config_goes_before_it(
    run_dir: Path, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    (run_dir.parent / "mlflow.db").unlink()
    uris = [f"sqlite:///{shutil.copy(empty_store, tmp_path / name)}" for name in ("x.db", "y.db")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uris[0])

    by_environment = Tracker(TrackingConfig(), run_dir, {})
    by_config = Tracker(TrackingConfig(uri=uris[1]), run_dir.with_name("b"), {})

    for uri, tracker in zip(uris, (by_environment, by_config), strict=True):
        assert MlflowClient(tracking_uri=uri).get_run(tracker.run_id).info.status == "RUNNING"
    assert not (run_dir.parent / "mlflow.db").exists()


def test_the_hint_opens_the_store_and_keeps_passwords(run_dir: Path) -> None:
    hint = Tracker(TrackingConfig(), run_dir, {}).open_hint()
    assert f"mlflow ui --workers 1 --backend-store-uri sqlite:///{run_dir.parent}/mlflow.db" in hint
    assert hint.endswith("--host 127.0.0.1 --port 5000")

    config = TrackingConfig(uri="http://user:secret@127.0.0.1:9/x")
    assert Tracker(config, run_dir, {}).open_hint() == "open http://127.0.0.1:9/x"


SECRET_STORE = "s3://KEYID:SECRET@bucket/run?scheme=http"


def test_no_credential_is_sent(run_dir: Path) -> None:
    """In parameters, tags of whatever origin, and what has changed on a resume."""
    parameters = {"train.run_dir": SECRET_STORE, "tracking.uri": "http://u:SECRET@h"}
    first = Tracker(TrackingConfig(), run_dir, parameters, {"trial.run_dir": SECRET_STORE})
    first.tag("trial.error", f"{SECRET_STORE} refuses")
    first.finish("FAILED")
    Tracker(TrackingConfig(), run_dir, {"train.run_dir": f"{SECRET_STORE}&region=x"})

    run = store(run_dir).get_run(first.run_id)
    assert run.data.params["train.run_dir"] == "s3://bucket/run?scheme=http"
    assert run.data.tags["trial.error"] == "s3://bucket/run?scheme=http refuses"
    assert run.data.tags["changed.train.run_dir"] == "s3://bucket/run?scheme=http&region=x"
    assert b"SECRET" not in (run_dir.parent / "mlflow.db").read_bytes()


def test_a_server_that_is_not_there_is_named_without_its_password(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        place = f"127.0.0.1:{closed.getsockname()[1]}"
        # One that should have been escaped, too.
        for password in ("SECRET", "SE CRET"):
            caplog.clear()
            config = TrackingConfig(uri=f"http://user:{password}@{place}")
            tracker = Tracker(config, run_dir, {})
            tracker.finish()
            fault = find_fault(config, run_dir)
            told = f"{caplog.text} {fault} {tracker.open_hint()}"
            assert "MLflow failed" in told
            assert place in told
            assert "CRET" not in told


def test_switched_off_it_touches_nothing(run_dir: Path) -> None:
    """In a process of its own, since other tests have imported MLflow here."""
    program = f"""
import sys
from pathlib import Path
from jobs.tracking.config import TrackingConfig
from jobs.tracking.tracker import Tracker

tracker = Tracker(TrackingConfig(enabled=False), Path({str(run_dir)!r}), {{"a": 1}})
tracker.log({{"train/loss": 1.0}}, 1)
tracker.catch_up([{{"step": 1, "train/loss": 1.0}}])
tracker.artifact(Path("nothing.png"))
tracker.finish("FAILED")
assert tracker.open_hint() == ""
assert "mlflow" not in sys.modules
"""
    assert run_python(program) == ""
    assert not run_dir.exists()


def test_a_new_store_is_made_without_a_word(run_dir: Path) -> None:
    """Out of nothing, its tables included, and with the root logger at INFO."""
    (run_dir.parent / "mlflow.db").unlink()
    program = f"""
import logging, os
from pathlib import Path
from jobs.tracking.config import TrackingConfig
from jobs.tracking.tracker import Tracker

logging.basicConfig(level=logging.INFO)
tracker = Tracker(TrackingConfig(), Path({str(run_dir)!r}), {{"a": 1}})
tracker.log({{"train/loss": 1.0}}, 1)
tracker.finish()
assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
"""
    assert run_python(program) == ""


def run_python(program: str) -> str:
    """What the program wrote, to either stream; it must not fail."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
