"""How many workers a run would have, whether `cluster.workers` can be had, now or from the
autoscaler, and how many nodes training and decoding take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.cli.config import Config
from jobs.diagnosis.autoscaler import Autoscaler, NodeType
from jobs.diagnosis.data import Sample
from jobs.diagnosis.finding import Finding, failure, number_of, ok, skipped, warning
from jobs.diagnosis.nodes import Node, Place

WORKERS, COST = "workers", "cost in nodes"

MIN_WORKER_CPUS = 0.5
"""Of a training worker on the CPU, beside its decoding."""

REFERENCE_CLIP = 9 * 128 * 128
"""Frames times pixels of the clip that `--gpu-clips-per-second` speaks of."""


@dataclass(frozen=True)
class Workers:
    """How many workers a run would have."""

    now: int
    """On the nodes that are there."""
    possible: int
    """With all nodes that may come."""
    min_wanted: int
    max_wanted: int
    on_gpus: bool

    @property
    def expected(self) -> int:
        """As many as are wanted and may be had, but one at least."""
        return max(1, min(self.possible, self.max_wanted))


def count_workers(config: Config, nodes: Sequence[Node], autoscaler: Autoscaler) -> Workers:
    """On the nodes that may train."""
    label, cluster = config.cluster.train_nodes, config.cluster
    places = [node for node in nodes if node.has(label)]
    on_gpus = cluster.gpu in ("yes", "pretend") or (
        cluster.gpu == "auto" and any(node.gpus for node in places)
    )
    now = sum(workers_on(node, config, on_gpus) for node in places)
    # The nodes that are there are of these types, too.
    to_come, nodes_left = 0, autoscaler.max_nodes
    kinds = [kind for kind in autoscaler.types if kind.has(label)]
    for kind in sorted(kinds, key=lambda kind: -workers_on(kind, config, on_gpus)):
        count = min(kind.max_nodes, nodes_left)
        to_come += count * workers_on(kind, config, on_gpus)
        nodes_left -= count
    there = sum(node.gpus for node in places) if on_gpus else 1
    max_wanted = cluster.max_workers or there or 1
    return Workers(now, max(now, to_come), cluster.min_workers or 1, max_wanted, on_gpus)


def workers_on(place: Place, config: Config, on_gpus: bool) -> int:
    """How many a node holds, by the rule of jobs/cluster/pool.py: one on each GPU, or as many as
    have CPUs for themselves and their decoding."""
    if on_gpus:
        return place.gpus
    return math.floor(place.cpus / (MIN_WORKER_CPUS + config.data.decode_cpus) + 1e-6)


def judge_workers(config: Config, workers: Workers, autoscaler: Autoscaler) -> Iterator[Finding]:
    """Whether they can be had, and which node types can never help."""
    label = config.cluster.train_nodes
    fewest, most = workers.min_wanted, workers.max_wanted
    wanted = str(most) if fewest == most else f"{fewest}-{most}"
    figure = f"{min(workers.possible, most)} of {wanted}"
    values = {"now": workers.now, "possible": workers.possible, "wanted": most}
    each = "a GPU each" if workers.on_gpus else "on CPUs"
    useless = [kind for kind in autoscaler.types if not kind.resources]
    names = ", ".join(kind.name for kind in useless)
    reason = f"No work fits node types without resources: {names}"
    if workers.possible < fewest:
        place = f" on nodes with the label {label}" if label else ""
        message = (
            f"{wanted} workers ({each}) are asked for, room{place} is for {workers.possible}, with "
            f"all nodes that may come{f'. {reason}' if useless else ''}"
        )
        yield failure(WORKERS, message, _advice(workers, autoscaler, useless), figure, **values)
        return
    if useless:
        yield warning(WORKERS, reason, _correct_types(useless, autoscaler))
    if workers.possible < most:
        yield warning(
            WORKERS,
            f"{wanted} workers are asked for, but there is never room for more than "
            f"{workers.possible}",
            "lower --cluster.workers, or raise max_workers of the cluster and its node types",
            figure,
            **values,
        )
    else:
        to_come = "" if workers.now >= most else "; the autoscaler brings the others"
        yield ok(WORKERS, f"{each}; there is room for {workers.now} now{to_come}", figure, **values)


def _advice(workers: Workers, autoscaler: Autoscaler, useless: Sequence[NodeType]) -> str:
    if useless:
        return _correct_types(useless, autoscaler)
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


def _correct_types(kinds: Sequence[NodeType], autoscaler: Autoscaler) -> str:
    """Where the cloud does not know the machine of one type, Ray fills in the resources of none."""
    again = "then run `ray up cluster.yaml`"
    if autoscaler.mistyped:
        pairs = autoscaler.mistyped.items()
        named = ", ".join(f"{name}{f' (is {near} meant?)' if near else ''}" for name, near in pairs)
        return f"AWS has no instance type {named}: correct it in cluster.yaml, {again}"
    instances = [kind.instance for kind in kinds if kind.instance]
    if instances:
        return (
            f"one of their instance types ({', '.join(instances)}) is mistyped, or is not offered "
            f"in the region: correct it in cluster.yaml, {again}"
        )
    return f"give them their `resources:` in cluster.yaml, {again}"


def judge_cost(
    config: Config,
    workers: Workers,
    sample: Sample | None,
    nodes: Sequence[Node],
    autoscaler: Autoscaler,
    gpu_clips_per_second: float,
) -> Iterator[Finding]:
    """Nodes for the workers, and for decoding at the pace of the GPUs.

    `gpu_clips_per_second`: assumed of one GPU, for clips of 9x128x128; the pace of other clips
    follows from their pixels.
    """
    count, task_cpus = workers.expected, config.data.decode_cpus
    train_nodes, kind = _training_nodes(config, workers, nodes, autoscaler)
    figure = f"{train_nodes} x {kind}"
    values: dict[str, object] = {
        "workers": count,
        "train_nodes": train_nodes,
        "train_node_type": kind,
    }
    asked = config.cluster.decode_cpus * count
    message = f"for {number_of(count, 'worker')}"
    if not workers.on_gpus or config.cluster.gpu == "pretend":
        cpus = asked or task_cpus * count
        where = _decoding_nodes(config, cpus, nodes, autoscaler)
        message += f"; decoding takes {cpus:g} CPUs{where}"
        yield ok(COST, message, figure, **values)
        return
    if sample is None or not sample.clips:
        reason = "what decoding takes is not known, since no clip was decoded"
        yield skipped(COST, f"{message}; {reason}", figure, **values)
        return
    clip = config.data.num_frames * config.data.height * config.data.width
    pace = count * gpu_clips_per_second * REFERENCE_CLIP / clip
    cpus = task_cpus * math.ceil(pace / sample.clips_per_second)
    values |= {"decode_cpus": cpus, "clips_per_second": pace, "decode_cpus_asked": asked}
    message += (
        f"; if they take {pace:.0f} clips a second (assumed: {gpu_clips_per_second:g} of 9x128x128 "
        f"a GPU, --gpu-clips-per-second), decoding takes {cpus:g} CPUs"
        f"{_decoding_nodes(config, cpus, nodes, autoscaler)}"
    )
    if asked and asked < cpus:
        message += ": more than is asked for, so the GPUs would wait"
        advice = (
            f"set --cluster.decode-cpus {math.ceil(cpus / count)} (now "
            f"{config.cluster.decode_cpus:g} a worker), or a larger --data.clips-per-window"
        )
        yield warning(COST, message, advice, figure, **values)
    else:
        yield ok(COST, message, figure, **values)


def _training_nodes(
    config: Config, workers: Workers, nodes: Sequence[Node], autoscaler: Autoscaler
) -> tuple[int, str]:
    """How many nodes train, and of what kind: the autoscaler's type that is tried first, else the
    largest node that is there."""
    label, on_gpus = config.cluster.train_nodes, workers.on_gpus
    types = [
        kind
        for kind in autoscaler.types
        if kind.has(label) and (kind.gpus if on_gpus else kind.resources)
    ]
    there = [node for node in nodes if node.has(label) and (node.gpus or not on_gpus)]
    if types:
        kind = max(types, key=lambda kind: kind.priority)
        fitting, name = workers_on(kind, config, on_gpus), str(kind)
    elif there:
        node = max(there, key=lambda node: (node.gpus, node.cpus))
        fitting = workers_on(node, config, on_gpus)
        name = f"node of {f'{node.gpus} GPUs' if on_gpus else f'{node.cpus:g} CPUs'}"
    else:
        return 0, "no node that could train"
    return math.ceil(workers.expected / max(1, fitting)), name


def _decoding_nodes(
    config: Config, cpus: float, nodes: Sequence[Node], autoscaler: Autoscaler
) -> str:
    """On which nodes so many CPUs decode, as the end of a sentence."""
    label = config.data.decode_nodes
    if not label:
        return " of the nodes that train"
    kinds = [kind for kind in autoscaler.types if kind.has(label) and kind.cpus]
    if kinds:
        kind = max(kinds, key=lambda kind: kind.priority)
        count = math.ceil(cpus / kind.cpus)
        short = f", of which at most {kind.max_nodes} may come" if count > kind.max_nodes else ""
        return f" = {count} x {kind}{short}"
    there = sum(node.cpus for node in nodes if node.has(label))
    return f", of {there:g} that the nodes with {label} have"
