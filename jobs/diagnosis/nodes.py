"""The nodes of a cluster, asked one by one: what each has, and whether their versions agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from jobs.cluster.nodes import ask_nodes, has_label, on_node
from jobs.cluster.ray_internals import draining_nodes
from jobs.cluster.versions import PACKAGES, differences
from jobs.diagnosis.finding import Finding, failure, number_of, ok, skipped
from jobs.diagnosis.machine import PROGRAM, Gpu, Machine, describe
from jobs.diagnosis.plain_errors import plain_error

AREA = "versions"

ANSWER_SECONDS = 90.0
"""A node's first process has to import Ray."""

HEAD_RESOURCE = "node:__internal_head__"
"""By which Ray marks the head."""


class NoAnswerError(Exception):
    """Why a node did not give what it was asked for."""


class Place:
    """What a node, or a type of nodes, has."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def has(self, label: str) -> bool:
        """Whether it has the label KEY=VALUE; all have the empty one."""
        return has_label(self.labels, label)

    @property
    def gpus(self) -> int:
        """As Ray counts them."""
        return int(self.resources.get("GPU", 0))

    @property
    def cpus(self) -> float:
        """A head without CPUs runs no tasks: it holds the driver alone."""
        return self.resources.get("CPU", 0)


@dataclass(frozen=True)
class Node(Place):
    """A node that is alive."""

    id: str
    address: str
    is_head: bool
    is_own: bool
    """Where the driver runs."""
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    machine: Machine | None
    """None where it did not answer."""
    is_draining: bool = False
    """It has been given notice, and takes no more work."""

    @property
    def gpus_seen(self) -> tuple[Gpu, ...]:
        """As its driver counts them; none where the node did not answer."""
        return self.machine.gpus if self.machine else ()

    @property
    def name(self) -> str:
        """For a person."""
        return "the head" if self.is_head else f"node {self.address}"

    @property
    def own_labels(self) -> dict[str, str]:
        """Without those that Ray sets."""
        return {k: v for k, v in self.labels.items() if not k.startswith("ray.io/")}


def call_on(
    node: Node, seconds: float, function: Callable[..., Any], *arguments: Any, cpus: float = 0
) -> Any:
    """What `function` returns on a node. Raises NoAnswerError, after `seconds` at the latest."""
    task = ray.remote(num_cpus=cpus, max_retries=0, scheduling_strategy=on_node(node.id))
    call = task(function).remote(*arguments)
    try:
        return ray.get(call, timeout=seconds)
    except GetTimeoutError as error:
        ray.cancel(call, force=True)
        raise NoAnswerError(f"nothing came within {seconds:g} s") from error
    except RayError as error:
        raise NoAnswerError(plain_error(str(error))) from error


def look_at_nodes(paths: Sequence[str]) -> list[Node]:
    """Every node that is alive, the head first.

    paths: local ones that all nodes should see. Nodes that are draining are not asked.
    """
    own, draining = ray.get_runtime_context().get_node_id(), draining_nodes()
    alive = [node for node in ray.nodes() if node["Alive"]]
    others = [node["NodeID"] for node in alive if node["NodeID"] not in {own, *draining}]
    request = (PACKAGES, list(paths))
    machines = ask_nodes(describe, dict.fromkeys(others, request), ANSWER_SECONDS)
    machines[own] = describe(*request)
    nodes = [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            is_head=HEAD_RESOURCE in node["Resources"],
            is_own=node["NodeID"] == own,
            resources=node["Resources"],
            labels=node["Labels"],
            machine=machines.get(node["NodeID"]),
            is_draining=node["NodeID"] in draining,
        )
        for node in alive
    ]
    return sorted(nodes, key=lambda node: (not node.is_head, node.address, node.id))


def judge_draining(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Names the nodes that are not looked at because they have been given notice."""
    names = [node.name for node in nodes if node.is_draining]
    if names:
        message = f"given notice, and so not looked at: {', '.join(names)}"
        yield skipped("nodes", message, number_of(len(names), "node"))


def judge_versions(driver: Mapping[str, str], nodes: Sequence[Node]) -> list[Finding]:
    """`driver`: versions by package, on the driver's own machine."""
    bad = [finding for node in nodes for finding in _compare_versions(driver, node)]
    everywhere = "" if len(nodes) == 1 else f" and all {number_of(len(nodes), 'node')}"
    listed = ", ".join(f"{name} {version}" for name, version in driver.items())
    return bad or [ok(AREA, f"{listed}: the same on the driver{everywhere}", **driver)]


def _compare_versions(driver: Mapping[str, str], node: Node) -> Iterator[Finding]:
    if node.machine is None:
        yield failure(
            AREA,
            f"{node.name} has not said within {ANSWER_SECONDS:g} s what it is",
            "a node that runs nothing has lost its network, its disk or its memory: look at "
            "`ray list nodes`, and end it so that another one comes",
            node=node.address,
        )
    elif different := differences(driver, node.machine.versions):
        advice = "install requirements.txt there, or use one image for the head and all nodes"
        if list(different) == [PROGRAM]:
            advice = "submit the job with --working-dir, so that all nodes get the same code"
        message = f"{node.name} has {', '.join(different.values())}"
        yield failure(AREA, message, advice, node=node.address, different=list(different))
