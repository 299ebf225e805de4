"""Whether the workers that `cluster.workers` asks for can be had: now, or from the autoscaler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.cli.config import Config
from jobs.diagnosis.autoscaler import Autoscaler, NodeType
from jobs.diagnosis.finding import Finding, Level
from jobs.diagnosis.nodes import Node

AREA = "workers"

LEAST_CPUS = 0.5
"""Of a training worker on the CPU, beside its decoding."""


@dataclass(frozen=True)
class Workers:
    """How many workers a run would have."""

    now: int
    """On the nodes that are there."""
    most: int
    """With all nodes that may come."""
    fewest_wanted: int
    most_wanted: int
    on_gpus: bool

    @property
    def expected(self) -> int:
        """As many as are wanted and may be had, but one at least."""
        return max(1, min(self.most, self.most_wanted))


def count_workers(config: Config, nodes: Sequence[Node], autoscaler: Autoscaler) -> Workers:
    """By the same rule as jobs/cluster/capacity.py: a GPU each, or, on CPUs, the CPUs beside its
    decoding."""
    label, cluster = config.cluster.train_nodes, config.cluster
    places = [node for node in nodes if node.has(label)]
    on_gpus = cluster.gpu in ("yes", "pretend") or (
        cluster.gpu == "auto" and any(node.gpus for node in places)
    )
    now = sum(_fit(config, on_gpus, node.resources) for node in places)
    # The nodes that are there are of these types, too.
    to_come, room = 0, autoscaler.most_nodes
    kinds = [kind for kind in autoscaler.types if kind.has(label)]
    for kind in sorted(kinds, key=lambda kind: -_fit(config, on_gpus, kind.resources)):
        count = min(kind.most, room)
        to_come += count * _fit(config, on_gpus, kind.resources)
        room -= count
    there = sum(node.gpus for node in places) if on_gpus else 1
    most_wanted = cluster.max_workers or there or 1
    return Workers(now, max(now, to_come), cluster.min_workers or 1, most_wanted, on_gpus)


def _fit(config: Config, on_gpus: bool, resources: Mapping[str, float]) -> int:
    if on_gpus:
        return int(resources.get("GPU", 0))
    return math.floor(resources.get("CPU", 0) / (LEAST_CPUS + config.data.decode_cpus) + 1e-6)


def judge_workers(
    config: Config, workers: Workers, nodes: Sequence[Node], autoscaler: Autoscaler
) -> list[Finding]:
    """Whether they can be had, and which node types can never help."""
    label = config.cluster.train_nodes
    wanted = _range(workers.fewest_wanted, workers.most_wanted)
    figure = f"{min(workers.most, workers.most_wanted)} of {wanted}"
    values = {"now": workers.now, "possible": workers.most, "wanted": workers.most_wanted}
    each = "a GPU each" if workers.on_gpus else "on CPUs"
    useless = [kind for kind in autoscaler.types if not kind.resources]
    reason = f". {_why_useless(useless)}" if useless else ""
    if workers.most < workers.fewest_wanted:
        place = f" on nodes with the label {label}" if label else ""
        return [
            Finding(
                Level.FAILURE,
                AREA,
                figure,
                f"{wanted} workers ({each}) are asked for, room{place} is for {workers.most}, with "
                f"all nodes that may come{reason}",
                _advice(workers, autoscaler, useless),
                values,
            )
        ]
    findings = []
    if useless:
        advice = _correct(useless, autoscaler)
        findings.append(Finding(Level.WARNING, AREA, "", _why_useless(useless), advice))
    if workers.most < workers.most_wanted:
        findings.append(
            Finding(
                Level.WARNING,
                AREA,
                figure,
                f"{wanted} workers are asked for, but there is never room for more than "
                f"{workers.most}",
                "lower --cluster.workers, or raise max_workers of the cluster and its node types",
                values,
            )
        )
    else:
        to_come = "" if workers.now >= workers.most_wanted else "; the autoscaler brings the others"
        message = f"{each}; there is room for {workers.now} now{to_come}"
        findings.append(Finding(Level.OK, AREA, figure, message, values=values))
    return findings


def _advice(workers: Workers, autoscaler: Autoscaler, useless: Sequence[NodeType]) -> str:
    if useless:
        return _correct(useless, autoscaler)
    if autoscaler.types:
        return (
            "add a node type with the label and "
            f"{'GPUs' if workers.on_gpus else 'CPUs'} to cluster.yaml, or ask for fewer workers"
        )
    if autoscaler.elsewhere:
        return "look at the worker groups of the RayCluster: `kubectl describe raycluster`"
    if workers.on_gpus:
        return "no autoscaler brings nodes here: start nodes with GPUs, or set --cluster.gpu no"
    return "no autoscaler brings nodes here: ask for fewer workers, or lower --data.decode-cpus"


def _why_useless(kinds: Sequence[NodeType]) -> str:
    names = ", ".join(kind.name for kind in kinds)
    return f"No work fits node types without resources: {names}"


def _correct(kinds: Sequence[NodeType], autoscaler: Autoscaler) -> str:
    """Where the cloud does not know the machine of one type, Ray fills in the resources of none."""
    again = "then run `ray up cluster.yaml`"
    if autoscaler.mistyped:
        pairs = autoscaler.mistyped.items()
        told = [f"{name}{f' (is {near} meant?)' if near else ''}" for name, near in pairs]
        return f"AWS has no instance type {', '.join(told)}: correct it in cluster.yaml, {again}"
    instances = [kind.instance for kind in kinds if kind.instance]
    if instances:
        return (
            f"one of their instance types ({', '.join(instances)}) is mistyped, or is not offered "
            f"in the region: correct it in cluster.yaml, {again}"
        )
    return f"give them their `resources:` in cluster.yaml, {again}"


def _range(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest}-{most}"
