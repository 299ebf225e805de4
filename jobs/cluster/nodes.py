"""The nodes of a cluster: their labels, tasks on each of them, and whether they can work together,
with the same packages and the same files in sight."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cli.config import Config
from jobs.cluster.ray_internals import draining_nodes
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
        config.data.validation_annotations,
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
        mark.unlink(missing_ok=True)


def _ask(paths: Sequence[str]) -> list[NodeFacts]:
    """The facts of all living nodes but the head, which is where this runs or which runs nothing,
    and those that have been given notice, which take no task.

    A node that goes meanwhile, or does not answer, is left out: it cannot be told from one that is
    about to go.
    """
    not_asked = {ray.get_runtime_context().get_node_id(), *draining_nodes()}
    wanted = {
        node["NodeID"]: (node["NodeManagerAddress"], list(paths))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in not_asked
    }
    facts = ask_nodes(_facts, wanted, ANSWER_SECONDS)
    silent = len(wanted) - len(facts)
    if silent:
        log.warning("%d nodes have not said within %g s what they are", silent, ANSWER_SECONDS)
    return list(facts.values())


def _facts(address: str, paths: Sequence[str]) -> NodeFacts:
    return NodeFacts(
        address, installed_versions(), [path for path in paths if not Path(path).exists()]
    )


def ask_nodes(
    function: Callable[..., Any], arguments: Mapping[str, Sequence[Any]], seconds: float
) -> dict[str, Any]:
    """What `function` gives on each node, by node id, called there with the node's `arguments`.

    Nodes that do not answer within `seconds`, or die meanwhile, are left out.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {
        task.options(scheduling_strategy=on_node(node)).remote(*given): node
        for node, given in arguments.items()
    }
    answered = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)[0] if asked else []
    answers = {}
    for reference in answered:
        with suppress(RayError):
            answers[asked[reference]] = ray.get(reference)
    return answers


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """That node or none."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def label_selector(label: str) -> dict[str, str]:
    """Ray's form of KEY=VALUE; an empty label selects any node."""
    key, _, value = label.partition("=")
    return {key: value} if key else {}


def has_label(labels: Mapping[str, str], label: str) -> bool:
    """Whether KEY=VALUE is among a node's labels; an empty label always is."""
    return label_selector(label).items() <= labels.items()
