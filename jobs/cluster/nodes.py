"""Whether the nodes of a cluster can work together: the same packages, the same files in sight."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cli.config import Config
from jobs.cluster.pool import draining_nodes
from jobs.cluster.versions import differences, installed_versions
from taehv.errors import TrainingError

log = logging.getLogger(__name__)

ANSWER_SECONDS = 120.0
"""A node's first process has to import Ray."""


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself."""

    address: str
    versions: Mapping[str, str]
    missing: Sequence[str]
    """Of the paths that it was asked for, those that it does not see."""


def check_nodes(config: Config) -> None:
    """Ask every node that is there, before training starts on them.

    Raises:
        TrainingError: naming the node, and what differs on it or what it does not see.
    """
    with _mark(config.train.run_dir) as mark:
        paths = [path for path in (mark, *local_inputs(config)) if path]
        here = _facts("", paths)
        for node in _ask(paths):
            different = differences(here.versions, node.versions)
            if different:
                raise TrainingError(
                    f"node {node.address} has {', '.join(different.values())}: all nodes need the "
                    "same packages; install requirements.txt there, or use one image for all"
                )
            if mark in node.missing:
                raise TrainingError(
                    f"node {node.address} does not see the run folder {config.train.run_dir}: "
                    "training on several nodes needs a folder that all share. Give "
                    "--train.run-dir s3://BUCKET/..., or set --cluster.storage s3://BUCKET/... "
                    "(TAEHV_STORAGE in cluster.yaml) for all runs"
                )
            if node.missing:
                raise TrainingError(
                    f"node {node.address} does not see {', '.join(node.missing)}, which this "
                    "machine does: inputs must lie on s3:// or in a folder that all nodes share"
                )


def local_inputs(config: Config) -> list[str]:
    """Local files and folders that workers read."""
    given = [
        config.data.annotations,
        config.data.root,
        config.model.pretrained,
        config.teacher.path,
        "" if config.train.resume == "latest" else config.train.resume,
    ]
    return [path for path in given if path and "://" not in path]


@contextmanager
def _mark(run_dir: str) -> Iterator[str]:
    """A file in the run folder that only a node which shares it can see; "" for a remote one."""
    if "://" in run_dir:
        yield ""
        return
    mark = Path(run_dir) / f".seen-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield str(mark)
    finally:
        with suppress(FileNotFoundError):
            mark.unlink()


def _ask(paths: Sequence[str]) -> list[NodeFacts]:
    """The facts of all living nodes but the head, which is where this runs or which runs nothing,
    and those that have been given notice, which take no task.

    A node that goes meanwhile, or does not answer, is left out: it cannot be told from one that is
    about to go.
    """
    not_asked = {ray.get_runtime_context().get_node_id(), *draining_nodes()}
    asked = [
        _facts_there.options(scheduling_strategy=on_node(node["NodeID"])).remote(
            node["NodeManagerAddress"], list(paths)
        )
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in not_asked
    ]
    if not asked:
        return []
    answered, silent = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
    if silent:
        log.warning("%d nodes have not said within %g s what they are", len(silent), ANSWER_SECONDS)
    facts = []
    for reference in answered:
        with suppress(ray.exceptions.RayError):
            facts.append(ray.get(reference))
    return facts


def _facts(address: str, paths: Sequence[str]) -> NodeFacts:
    return NodeFacts(
        address, installed_versions(), [path for path in paths if not Path(path).exists()]
    )


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """That node or none."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _facts_there(address: str, paths: list[str]) -> NodeFacts:
    return _facts(address, paths)
