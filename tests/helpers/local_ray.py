"""A Ray of this process alone, and what others need to join it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray._private.utils import get_ray_address_file
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_get


@contextmanager
def temporary_folder() -> Iterator[str]:
    """For Ray's files. The path of a socket may have 107 characters, which pytest's own folders
    leave no room for."""
    folder = tempfile.mkdtemp(prefix="ray_", dir="/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def local_ray(cpus: int = 2) -> Iterator[None]:
    """Begin one, with a temporary folder of its own, and end it."""
    with temporary_folder() as folder:
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            namespace=uuid.uuid4().hex,
            logging_level="warning",
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


@contextmanager
def several_nodes(*nodes: dict[str, Any]) -> Iterator[Cluster]:
    """Begin one of these nodes, of which the first is its head, and end it. Each: arguments of
    `Cluster.add_node`."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        # Its nodes want one, and make none.
        command = [str(Path(sys.executable).with_name("ray")), "get-auth-token", "--generate"]
        subprocess.run(command, check=True, capture_output=True)
    # Ray writes here which cluster is the newest, into a folder that no Ray may have made yet.
    Path(get_ray_address_file(None)).parent.mkdir(exist_ok=True)
    cluster = Cluster()
    with temporary_folder() as folder:
        try:
            for node in nodes:
                cluster.add_node(include_dashboard=False, temp_dir=folder, **node)
            yield cluster
        finally:
            cluster.shutdown()


def demanded() -> list[dict[str, float]]:
    """What the autoscaler is asked to keep or to bring, where the first of its versions would read
    it: no autoscaler runs here. Of the cluster that this process is connected to."""
    asked = _internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)
    bundles: list[dict[str, float]] = json.loads(asked or "[]")
    return bundles


def token_variables() -> dict[str, str]:
    """What a process with another HOME needs, to be let in by the Ray of this one: a token, which
    lies in this user's home, once a Ray was begun here."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
