"""Ray for the length of a job: the cluster that is there, or one of the job's own."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data import DataContext
from ray.exceptions import AuthenticationError

from data_pipeline.decoding.cores import usable_cores
from data_pipeline.streaming import quiet_context
from jobs.cli.config import ClusterConfig
from jobs.cli.paths import is_job_copy
from jobs.cluster import local_ray
from taehv.errors import TrainingError

REPOSITORY = Path(__file__).resolve().parents[2]
"""The folder of this project's packages: the checkout, or site-packages where it was installed."""

PACKAGES = ("data_pipeline", "jobs", "taehv")
"""What is sent to the nodes."""

ALL_EXCLUDES_ARE_OURS = {"RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": ""}
"""Ray warns of each folder that it leaves behind by itself."""

NO_USAGE = {"RAY_DATA_USAGE_DISABLED": "1"}
"""No statistics of how Ray Data is used: their actor would be one more process, started by a
training worker on its own node, and outlive the run there."""

log = logging.getLogger(__name__)


@contextmanager
def connected(config: ClusterConfig, decode_cpus: float) -> Iterator[bool]:
    """Ray for the length of a job: the cluster in RAY_ADDRESS, or one on this machine alone.

    Yields whether it is the latter.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    environment: dict[str, str] = {
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # The driver looks for notices itself; Ray's own watcher is one more process to start.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # Who was given no GPU sees none: workers that are to train on CPUs would share the first.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        **NO_USAGE,
    }
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address:
        # What else runs on a cluster's nodes may take cores from a training worker on CPUs; its
        # threads must not spin in wait for one that has none.
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        _connect(address, environment, quiet)
    else:
        # Ray's CPUs are tickets: every worker and its decoding get theirs, even where they have to
        # share a core.
        tickets = math.ceil(max(1, config.max_workers) * (1 + decode_cpus))
        cpus = max(usable_cores(), tickets)
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
            **local_ray.SETTINGS,
        }
        # Inherited from here, unlike from a runtime environment, the variables are in Ray's own
        # processes too, which read most of them.
        with _variables(environment):
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    try:
        with _variables(NO_USAGE):
            if address:
                _start_data_actors_here()
            yield not address
    finally:
        if address:
            ray.shutdown()
        else:
            local_ray.shut_down()


def _connect(address: str, environment: dict[str, str], quiet: dict[str, Any]) -> None:
    """Raises TrainingError, in one line, where the cluster refuses."""
    # A submitted job that brought its code has sent it to all nodes; one that found it here has
    # not, and nodes may have an older one.
    code = {} if is_job_copy(REPOSITORY) else sent_code(REPOSITORY)
    try:
        with _variables(ALL_EXCLUDES_ARE_OURS):
            ray.init(address=address, runtime_env={"env_vars": environment, **code}, **quiet)
    except AuthenticationError as error:
        raise TrainingError(
            f"the cluster at {address} wants its token: set RAY_AUTH_MODE=token, and let "
            "~/.ray/auth_token be the cluster's"
        ) from error
    except (RuntimeError, ConnectionError) as error:
        # A version mismatch is told in many lines, of which the first says what it is.
        lines = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise TrainingError(f"the cluster at {address} refuses this driver: {lines}") from error


def _start_data_actors_here() -> None:
    """Read a dataset, which takes no CPU. Two actors of Ray Data's outlive the job on the node of
    who reads first; were that a training node, it would never be idle again."""
    with DataContext.current(quiet_context()):
        ray.data.from_items([0]).take_all()


def sent_code(folder: Path) -> dict[str, Any]:
    """The part of Ray's runtime environment that sends the packages in `folder`, and nothing else
    that lies beside them: runs in a checkout, or all of site-packages."""
    beside = sorted(entry.name for entry in folder.iterdir() if entry.name not in PACKAGES)
    excludes = [*(f"/{name}" for name in beside), "__pycache__"]
    return {"working_dir": str(folder), "excludes": excludes}


@contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    """These variables in this process's environment, for as long as the context."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
