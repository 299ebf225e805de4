"""`ray job submit` against a cluster of one machine, with token authentication on."""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from data_pipeline.synthetic import ensure_synthetic
from taehv.run import journal
from taehv.run.run_folder import resume_options
from tests.helpers.jobs_run import REPOSITORY, TINY, environment
from tests.helpers.local_ray import temporary_folder

# Two jobs on a cluster of its own: minutes where the machine has other things to do.
pytestmark = pytest.mark.timeout(900)

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    environment: dict[str, str]
    dashboard: str


def _free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """`ray start --head` in a HOME and on ports of its own, ended by its own process ids."""
    home = tmp_path / "home"
    home.mkdir()
    port, dashboard, agent, metrics, client = _free_ports(5)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = environment(home, RAY_AUTH_MODE="token", PATH=path)
    subprocess.run([RAY, "get-auth-token", "--generate"], env=variables, check=True)
    ports = {
        "port": port,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "metrics-export-port": metrics,
        "ray-client-server-port": client,
    }
    with temporary_folder() as session:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", "--dashboard-host=127.0.0.1"]
            + ["--node-ip-address=127.0.0.1", f"--temp-dir={session}", "--disable-usage-stats"]
            + [f"--{name}={value}" for name, value in ports.items()],
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 120
            while not _answers(int(dashboard)):
                assert process.poll() is None, "ray start ended"
                assert time.monotonic() < end, f"no dashboard: {_dashboards_words(session)}"
                time.sleep(0.3)
            yield Head(variables, f"http://127.0.0.1:{dashboard}")
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            _, alive = psutil.wait_procs([*family, psutil.Process(process.pid)], timeout=3)
            for straggler in alive:
                straggler.kill()
            process.wait()


def _dashboards_words(session: str) -> str:
    """Why it is not there; `ray start` goes on without it, and without a word."""
    return (Path(session) / "session_latest" / "logs" / "dashboard.err").read_text()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _submit(head: Head, job: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *job],
        cwd=REPOSITORY,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def _submit_run(head: Head, folder: Path) -> Path:
    """A run of three steps as a submitted job; gives its folder."""
    annotations = ensure_synthetic(folder / "cache", videos=3, frames=40, height=48, width=80)
    run_dir = folder / "runs" / "submitted"
    job = [
        *("python", "jobs/train.py", *TINY, "--train.max-steps", "3"),
        *("--data.annotations", str(annotations), "--train.run-dir", str(run_dir)),
    ]
    result = _submit(head, job)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "succeeded" in result.stdout
    return run_dir


@pytest.mark.slow
def test_what_a_run_prints_to_go_on_with_it_is_enough_there_too(head: Head, tmp_path: Path) -> None:
    run_dir = _submit_run(head, tmp_path)
    begun = yaml.safe_load((run_dir / "config.yaml").read_text())
    go_on = [*shlex.split(resume_options(str(run_dir))), "--train.max-steps", "4"]
    result = _submit(head, ["python", "jobs/train.py", *go_on])
    assert result.returncode == 0, result.stdout + result.stderr
    assert [row["step"] for row in journal.read(run_dir / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    resumed = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert (resumed["data"], resumed["model"]) == (begun["data"], begun["model"])


def test_the_same_command_as_a_submitted_job(head: Head, tmp_path: Path) -> None:
    run_dir = _submit_run(head, tmp_path)
    assert [row["step"] for row in journal.read(run_dir / "metrics.jsonl")] == [0, 1, 2, 3]
    assert (run_dir / "final_model.safetensors").is_file()

    # The cluster refuses a caller without the token.
    stranger = {**head.environment, "RAY_AUTH_MODE": "disabled"}
    refused = subprocess.run(
        [RAY, "job", "list", "--address", head.dashboard],
        env=stranger,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode != 0
