"""The nodes of a cluster, asked one by one; those that are about to go are let go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from jobs.cluster.nodes import ask_nodes, has_label
from jobs.cluster.ray_internals import draining_nodes
from jobs.cluster.versions import PACKAGES
from jobs.diagnosis.finding import Finding, Level, number_of
from jobs.diagnosis.machine import Machine, describe

ANSWER_SECONDS = 90.0
"""A node's first process has to import Ray."""

HEAD_RESOURCE = "node:__internal_head__"
"""By which Ray marks the head."""


@dataclass(frozen=True)
class Node:
    """A node that lives."""

    id: str
    address: str
    is_head: bool
    is_own: bool
    """Where the driver runs."""
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    machine: Machine | None
    """None where it did not answer."""
    is_going: bool = False
    """It has been given notice, and takes no more work."""

    def has(self, label: str) -> bool:
        """Whether it has the label KEY=VALUE; the empty one has every node."""
        return has_label(self.labels, label)

    @property
    def gpus(self) -> int:
        """As Ray counts them."""
        return int(self.resources.get("GPU", 0))

    @property
    def name(self) -> str:
        """For a person."""
        return "the head" if self.is_head else f"node {self.address}"

    @property
    def own_labels(self) -> dict[str, str]:
        """Without those that Ray sets."""
        return {k: v for k, v in self.labels.items() if not k.startswith("ray.io/")}


def look_at_nodes(paths: Sequence[str]) -> list[Node]:
    """Every node that lives, the head first; `paths` are local ones that all should see. One that
    is going is not asked."""
    own, going = ray.get_runtime_context().get_node_id(), draining_nodes()
    alive = [node for node in ray.nodes() if node["Alive"]]
    others = [node["NodeID"] for node in alive if node["NodeID"] not in {own, *going}]
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
            is_going=node["NodeID"] in going,
        )
        for node in alive
    ]
    return sorted(nodes, key=lambda node: (not node.is_head, node.address, node.id))


def judge_going(nodes: Sequence[Node]) -> list[Finding]:
    """Those that are not looked at because they have been given notice."""
    going = [node.name for node in nodes if node.is_going]
    if not going:
        return []
    message = f"given notice, and so not looked at: {', '.join(going)}"
    return [Finding(Level.SKIPPED, "nodes", number_of(len(going), "node"), message)]
