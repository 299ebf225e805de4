"""An MLflow server that refuses or hangs, at the start, on the way and at the end, and returns."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from taehv.run import journal
from tests.faults import record
from tests.faults.compare import assert_same_end
from tests.faults.job import GRACE, STEPS, Job
from tests.faults.leftovers import own_temp, wait_until_gone
from tests.faults.proxy import Proxy, proxy_to
from tests.helpers.jobs_run import assert_quiet, environment

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

MISSED = "training goes on without it"
"""What a job says when the server is away."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a real MLflow server."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = address.split(":")
    line = (
        f"--host {host} --port {port} --workers 1 --backend-store-uri sqlite:///{folder}/mlflow.db"
        f" --artifacts-destination {folder}/files"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *line.split()],
        env=environment(folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for_health(process, address)
        yield address
    finally:
        # Its workers are in the session that was begun for it.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait_for_health(process: "subprocess.Popen[bytes]", address: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, "mlflow server ended early"
        try:
            if requests.get(f"http://{address}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise AssertionError("mlflow server did not start in 120 s")


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with proxy_to(server) as made:
        yield made


@pytest.fixture
def temp() -> Iterator[Path]:
    with own_temp() as folder:
        yield folder


def start(videos: Path, run: Path, temp: Path, proxy: Proxy, step: int) -> Job:
    """A job that follows its run through the proxy, does not wait long to try again, and is held
    at a step."""
    line = f"--tracking.uri http://{proxy.address} --tracking.retry-seconds 2"
    more = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    return Job.start(videos, run, temp, *line.split(), limits={run.name: step}, **more)


def stored(server: str, run: Path) -> dict[tuple[str, int], float]:
    """What MLflow holds of the run's metrics, and that it holds the run as finished."""
    from mlflow import MlflowClient

    client: Any = MlflowClient(tracking_uri=f"http://{server}")
    (held,) = client.search_runs(
        [client.get_experiment_by_name("taehv").experiment_id],
        filter_string=f"attributes.run_name = '{run.name}'",
    )
    assert held.info.status == "FINISHED"
    return {
        (name, metric.step): metric.value
        for name in held.data.metrics
        for metric in client.get_metric_history(held.info.run_id, name)
    }


def assert_complete(server: str, run: Path) -> None:
    """Every number of metrics.jsonl is in MLflow, once, and nothing else is."""
    rows = {
        (name, row["step"]): float(value)
        for row in journal.read(run / journal.NAME)
        for name, value in row.items()
        if name != "step" and isinstance(value, (int, float))
    }
    held = stored(server, run)
    assert rows.keys() == held.keys() != set()
    assert all(held[key] == pytest.approx(value, nan_ok=True) for key, value in rows.items())


@pytest.mark.parametrize("moment", ["at the start", "on the way", "at the end"])
@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_a_server_that_is_away(
    videos: Path,
    reference: Path,
    server: str,
    proxy: Proxy,
    temp: Path,
    tmp_path: Path,
    how: str,
    moment: str,
) -> None:
    chance = random.Random(f"{os.environ.get('FAULTS_SEED', '0')} {how} {moment}")
    run = tmp_path / f"{how}_{moment.replace(' ', '_')}"
    leave = {"refuses": proxy.refuse, "hangs": proxy.hang}[how]
    step = {
        "at the start": chance.randrange(1, 6),
        "on the way": chance.randrange(1, STEPS // 2),
        "at the end": STEPS - 4,
    }[moment]
    if moment == "at the start":
        leave()
    job = start(videos, run, temp, proxy, step)
    job.wait_until_held(run.name)
    if moment != "at the start":
        leave()
    if moment != "at the end":
        # Away until it is missed, which is at a row; the run is not over before.
        job.hold.let_go(run.name, STEPS - 1)
        job.wait_for_words(MISSED)
        proxy.pass_on()
    job.hold.let_go(run.name)
    assert job.wait() == 0, job.output
    assert_same_end(run, reference, besides=("decoded_frames_per_used_frame",))
    assert MISSED in job.output
    if moment == "at the end":
        assert "resuming the run sends them" in job.output
        proxy.pass_on()
        again = ("--tracking.uri", f"http://{proxy.address}", "--train.resume", "latest")
        job = Job.start(videos, run, temp, *again)
        assert job.wait() == 0, job.output
    assert_quiet(job.output)
    assert_complete(server, run)
    assert wait_until_gone(temp, GRACE) == []
    record.note(f"an MLflow server that {how} {moment}", "the run is unharmed, MLflow complete")
