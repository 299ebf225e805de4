"""Nodes that come, go and are given notice: a run with a range of workers follows its cluster."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from taehv.run import checkpoint, journal
from tests.faults import record
from tests.faults.compare import assert_losses_agree
from tests.helpers.data_videos import write_dataset
from tests.helpers.hold import Hold
from tests.helpers.jobs_run import REPOSITORY, TINY, environment, finish, start, wait_for
from tests.helpers.local_ray import several_nodes, token_variables
from tests.helpers.small_run import latest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

RAY = str(Path(sys.executable).with_name("ray"))

STEPS, SAVE_EVERY = 120, 5

LONGEST = 600.0
"""Seconds for what a test waits for. Two workers start on a new node in one minute, or in three
where two slow cores do other things as well."""


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    """Of the job on the cluster."""
    return Hold(tmp_path / "hold")


def node_of(hold: Hold) -> dict[str, Any]:
    """One with room for one training worker and its decoding."""
    return {"num_cpus": 1, "env_vars": hold.variables}


@pytest.fixture
def cluster(hold: Hold) -> Iterator[Cluster]:
    """One node."""
    with several_nodes(node_of(hold)) as cluster:
        yield cluster


def job_on(cluster: Cluster, home: Path, *arguments: str) -> "subprocess.Popen[str]":
    home.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "jobs/train.py", *TINY, "--train.max-steps", str(STEPS), *arguments],
        cwd=REPOSITORY,
        env=environment(home, RAY_ADDRESS=cluster.address, PYTHONPATH=paths, **token_variables()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def workers_of(run_dir: Path) -> int:
    """Of the newest checkpoint."""
    folder = latest(run_dir)
    return 0 if folder is None else int(checkpoint.read_info(folder)["workers"])


def steps_made(run_dir: Path) -> list[int]:
    return [row["step"] for row in journal.read(run_dir / journal.NAME) if "train/loss" in row]


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "videos", count=6)


@pytest.fixture(scope="module")
def reference(annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One worker from beginning to end."""
    folder = tmp_path_factory.mktemp("reference")
    line = f"--data.annotations {annotations} --train.run-dir {folder}/run"
    job = start(folder / "home", *TINY, *line.split(), "--train.max-steps", str(STEPS))
    code, output = finish(job, LONGEST)
    assert code == 0, output
    return folder / "run"


@pytest.mark.parametrize("trial", range(3))
def test_a_node_comes_and_is_lost(
    cluster: Cluster, hold: Hold, annotations: Path, reference: Path, tmp_path: Path, trial: int
) -> None:
    """At random steps; with no failure allowed, since the loss of a node is none of the run's. The
    last time another node takes its place before anyone notices."""
    replaced = trial == 2
    chance = random.Random(int(os.environ.get("FAULTS_SEED", "0")) + trial)
    run_dir = tmp_path / "runs" / "a"
    line = f"--data.annotations {annotations} --train.run-dir {run_dir}"
    line += f" --train.checkpoint-every {SAVE_EVERY}"
    size = "--cluster.workers 1-2 --cluster.resize-seconds 5 --cluster.max-failures 0"
    comes = chance.randrange(1, 15)
    hold.let_go("a", comes)
    job = job_on(cluster, tmp_path / "home", *line.split(), *size.split())
    wait_for(lambda: hold.waits("a"), f"step {comes}", job, LONGEST)
    node = cluster.add_node(**node_of(hold))
    # Held, it saves only in order to make way.
    wait_for(lambda: _step_of_latest(run_dir) > comes, "way being made", job, LONGEST)
    grown = _next_save(comes + 1)
    goes = _next_save(grown) + 1 + chance.randrange(0, 15)
    hold.let_go("a", goes)
    wait_for(lambda: hold.waits("a"), f"step {goes}", job, LONGEST)
    assert workers_of(run_dir) == 2
    cluster.remove_node(node, allow_graceful=False)
    if replaced:
        cluster.add_node(**node_of(hold))
        _hold_until_two_workers(hold, goes, run_dir, job)
    hold.let_go("a")
    code, output = finish(job, LONGEST)
    assert code == 0, output
    assert "there is room for more workers" in output
    assert "nodes have gone" in output
    assert workers_of(run_dir) == (2 if replaced else 1)
    assert steps_made(run_dir) == list(range(1, STEPS + 1))
    # What two workers sum in another order, one works on with: equal only for a while.
    assert_losses_agree(run_dir, reference, range(1, grown + 1), 1e-3)
    record.note("a node added, then lost", "grows, shrinks, ends; losses agree to 1e-3")


def _step_of_latest(run_dir: Path) -> int:
    folder = latest(run_dir)
    return 0 if folder is None else checkpoint.step_of(folder)


def _next_save(step: int) -> int:
    """After `step`; the one before it is whole by then."""
    return (step // SAVE_EVERY + 1) * SAVE_EVERY


def _hold_until_two_workers(
    hold: Hold, lost: int, run_dir: Path, job: "subprocess.Popen[str]"
) -> None:
    """Before its end: it has gone on with as many, or makes way for the second once it sees it."""
    later = _next_save(_next_save(lost)) + 1
    hold.let_go("a", later)

    def settled() -> bool:
        step = _step_of_latest(run_dir)
        return step > later or (step > lost and workers_of(run_dir) == 2)

    wait_for(settled, "two workers on the new node", job, LONGEST)


def test_waiting_for_workers_says_so_and_gives_up(
    cluster: Cluster, annotations: Path, tmp_path: Path
) -> None:
    line = f"--data.annotations {annotations} --train.run-dir {tmp_path}/runs/b"
    size = "--cluster.workers 2 --cluster.wait-minutes 0.1"
    code, output = finish(job_on(cluster, tmp_path / "home", *line.split(), *size.split()), LONGEST)
    assert code == 1, output
    assert "1 of the 2 workers that cluster.workers asks for can start" in output
    assert "after 0.1 minutes" in output


@pytest.mark.parametrize("trial", range(3))
def test_a_node_that_is_given_notice_is_left_in_time(
    cluster: Cluster, hold: Hold, annotations: Path, tmp_path: Path, trial: int
) -> None:
    """At a random step, with no failure allowed: a notice is none."""
    chance = random.Random(int(os.environ.get("FAULTS_SEED", "0")) + trial)
    leaving = cluster.add_node(**node_of(hold))
    run_dir = tmp_path / "runs" / "c"
    line = f"--data.annotations {annotations} --train.run-dir {run_dir}"
    line += f" --train.checkpoint-every {SAVE_EVERY}"
    size = "--cluster.workers 1-2 --cluster.max-failures 0"
    moment = 2 * SAVE_EVERY + 1 + chance.randrange(0, 30)
    hold.let_go("c", moment)
    job = job_on(cluster, tmp_path / "home", *line.split(), *size.split())
    wait_for(lambda: hold.waits("c"), f"step {moment}", job, LONGEST)
    assert workers_of(run_dir) == 2
    options = f"--address {cluster.address} --node-id {leaving.node_id}"
    options += " --reason DRAIN_NODE_REASON_PREEMPTION --deadline-remaining-seconds 300"
    drained = subprocess.run(
        [RAY, "drain-node", *options.split(), "--reason-message", "spot reclaim"],
        env=environment(tmp_path / "home", **token_variables()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert drained.returncode == 0, drained.stderr
    # Held, it saves only in order to make way.
    wait_for(lambda: _step_of_latest(run_dir) > moment, "way being made", job, LONGEST)
    hold.let_go("c")
    code, output = finish(job, LONGEST)
    assert code == 0, output
    assert "a node has been given notice" in output
    assert "failed" not in output
    assert workers_of(run_dir) == 1
    assert steps_made(run_dir) == list(range(1, STEPS + 1))
    record.note("notice to a node", "left in time, no failure; the run ends")


def test_a_run_that_waits_can_be_stopped(
    cluster: Cluster, annotations: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "d"
    line = f"--data.annotations {annotations} --train.run-dir {run_dir} --cluster.workers 2"
    job = job_on(cluster, tmp_path / "home", *line.split())
    wait_for((run_dir / "config.yaml").exists, "its folder", job, LONGEST)
    # Handlers stand before the waiting begins, which is told first.
    assert job.stdout is not None
    while "workers that cluster.workers asks for can start" not in job.stdout.readline():
        assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    code, output = finish(job, LONGEST)
    assert code == 143, output
    assert "stopped while waiting for workers; go on with: " in output
