"""A run with a range of workers grows and shrinks with its cluster, and stays the same run."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from taehv import checkpoint, journal
from tests.data_videos import write_dataset
from tests.jobs_run import REPOSITORY, TINY, environment, finish, wait_for
from tests.small_run import latest

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One node with room for one training worker and its decoding."""
    folder = tempfile.mkdtemp(prefix="ray_", dir="/tmp")
    cluster = Cluster()
    cluster.add_node(num_cpus=1, include_dashboard=False, temp_dir=folder)
    try:
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def job_on(cluster: Cluster, home: Path, *arguments: str) -> "subprocess.Popen[str]":
    home.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "jobs/train.py", *TINY, *arguments],
        cwd=REPOSITORY,
        env=environment(home, RAY_ADDRESS=cluster.address, PYTHONPATH=paths, **_token()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _token() -> dict[str, str]:
    """What a cluster of this environment asks for."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}


def workers_of(run_dir: Path) -> int:
    """Of the newest checkpoint."""
    folder = latest(run_dir)
    return 0 if folder is None else int(checkpoint.read_info(folder)["workers"])


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_run_grows_and_shrinks(cluster: Cluster, tmp_path: Path) -> None:
    annotations = write_dataset(tmp_path / "data", count=6)
    run_dir = tmp_path / "runs" / "a"
    line = f"--data.annotations {annotations} --train.run-dir {run_dir} --train.checkpoint-every 5"
    size = "--cluster.workers 1-2 --cluster.resize-seconds 5 --train.max-steps 120"
    job = job_on(cluster, tmp_path / "home", *line.split(), *size.split())
    wait_for(lambda: workers_of(run_dir) == 1, job)
    node = cluster.add_node(num_cpus=1)
    wait_for(lambda: workers_of(run_dir) == 2, job)
    cluster.remove_node(node, allow_graceful=False)
    grown = checkpoint.step_of(latest(run_dir) or Path())
    wait_for(
        lambda: workers_of(run_dir) == 1 and checkpoint.step_of(latest(run_dir) or Path()) > grown,
        job,
        seconds=180,
    )
    code, output = finish(job, 300)
    assert code == 0, output
    assert "there is room for more workers" in output
    assert "nodes have gone" in output
    steps = [row["step"] for row in journal.read(run_dir / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, 121))


@pytest.mark.faults
def test_waiting_for_workers_says_so_and_gives_up(cluster: Cluster, tmp_path: Path) -> None:
    annotations = write_dataset(tmp_path / "data", count=3)
    line = f"--data.annotations {annotations} --train.run-dir {tmp_path}/runs/b"
    size = "--cluster.workers 2 --cluster.wait-minutes 0.1"
    code, output = finish(job_on(cluster, tmp_path / "home", *line.split(), *size.split()), 120)
    assert code == 1, output
    assert "1 of the 2 workers that cluster.workers asks for can start" in output
    assert "after 0.1 minutes" in output


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_node_that_is_given_notice_is_left_in_time(cluster: Cluster, tmp_path: Path) -> None:
    """With no failure allowed: a notice is none."""
    leaving = cluster.add_node(num_cpus=1)
    annotations = write_dataset(tmp_path / "data", count=6)
    run_dir = tmp_path / "runs" / "c"
    line = f"--data.annotations {annotations} --train.run-dir {run_dir} --train.checkpoint-every 5"
    size = "--cluster.workers 1-2 --cluster.max-failures 0 --train.max-steps 150"
    job = job_on(cluster, tmp_path / "home", *line.split(), *size.split())
    wait_for(lambda: workers_of(run_dir) == 2, job, seconds=180)
    options = f"--address {cluster.address} --node-id {leaving.node_id}"
    options += " --reason DRAIN_NODE_REASON_PREEMPTION --deadline-remaining-seconds 300"
    drained = subprocess.run(
        [RAY, "drain-node", *options.split(), "--reason-message", "spot reclaim"],
        env=environment(tmp_path / "home", **_token()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert drained.returncode == 0, drained.stderr
    code, output = finish(job, 300)
    assert code == 0, output
    assert "a node has been given notice" in output
    assert "failed" not in output
    assert workers_of(run_dir) == 1
    steps = [row["step"] for row in journal.read(run_dir / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, 151))


@pytest.mark.faults
def test_a_run_that_waits_can_be_stopped(cluster: Cluster, tmp_path: Path) -> None:
    annotations = write_dataset(tmp_path / "data", count=3)
    run_dir = tmp_path / "runs" / "d"
    line = f"--data.annotations {annotations} --train.run-dir {run_dir} --cluster.workers 2"
    job = job_on(cluster, tmp_path / "home", *line.split())
    wait_for((run_dir / "config.yaml").exists, job)
    # Handlers stand before the waiting begins, which is told first.
    assert job.stdout is not None
    while "workers that cluster.workers asks for can start" not in job.stdout.readline():
        assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    code, output = finish(job, 60)
    assert code == 143, output
    assert "stopped while waiting for workers; go on with: " in output
