"""What a config takes in nodes: those that train, and those that decode for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.cli.config import Config
from jobs.diagnosis.autoscaler import Autoscaler, NodeType
from jobs.diagnosis.capacity import Workers
from jobs.diagnosis.data import Sample
from jobs.diagnosis.finding import Finding, Level, number_of
from jobs.diagnosis.nodes import Node

AREA = "cost in nodes"

REFERENCE_CLIP = 9 * 128 * 128
"""Frames times pixels of the clip that `--gpu-clips-per-second` speaks of."""


@dataclass(frozen=True)
class Need:
    """Nodes of one kind."""

    count: int
    kind: str
    """Of an autoscaler's type, or of the nodes that are there."""

    def __str__(self) -> str:
        return f"{self.count} x {self.kind}"


def judge_cost(
    config: Config,
    workers: Workers,
    sample: Sample | None,
    nodes: Sequence[Node],
    autoscaler: Autoscaler,
    gpu_clips_per_second: float,
) -> list[Finding]:
    """Nodes for the workers, and for decoding at the pace of the GPUs.

    `gpu_clips_per_second`: assumed of one GPU, for clips of 9x128x128; the pace of other clips
    follows from their pixels.
    """
    count = workers.expected
    training = _training_nodes(config, workers, nodes, autoscaler)
    values: dict[str, object] = {
        "workers": count,
        "train_nodes": training.count,
        "train_node_type": training.kind,
    }
    asked = config.cluster.decode_cpus * count
    message = f"for {number_of(count, 'worker')}"
    if not workers.on_gpus or config.cluster.gpu == "pretend":
        cpus = asked or config.data.decode_cpus * count
        message += f"; decoding takes {cpus:g} CPUs{_on_nodes(config, cpus, nodes, autoscaler)}"
        return [Finding(Level.OK, AREA, str(training), message, values=values)]
    if sample is None or not sample.clips:
        reason = "what decoding takes is not known, since no clip was decoded"
        return [Finding(Level.SKIPPED, AREA, str(training), f"{message}; {reason}", values=values)]
    clip = config.data.num_frames * config.data.height * config.data.width
    pace = count * gpu_clips_per_second * REFERENCE_CLIP / clip
    cpus = config.data.decode_cpus * math.ceil(pace / sample.clips_per_second)
    values |= {"decode_cpus": cpus, "clips_per_second": pace, "decode_cpus_asked": asked}
    message += (
        f"; if they take {pace:.0f} clips a second (assumed: {gpu_clips_per_second:g} of 9x128x128 "
        f"a GPU, --gpu-clips-per-second), decoding takes {cpus:g} CPUs"
        f"{_on_nodes(config, cpus, nodes, autoscaler)}"
    )
    if asked and asked < cpus:
        advice = (
            f"set --cluster.decode-cpus {math.ceil(cpus / count)} (now "
            f"{config.cluster.decode_cpus:g} a worker), or a larger --data.clips-per-window"
        )
        message += ": more than is asked for, so the GPUs would wait"
        return [Finding(Level.WARNING, AREA, str(training), message, advice, values)]
    return [Finding(Level.OK, AREA, str(training), message, values=values)]


def _training_nodes(
    config: Config, workers: Workers, nodes: Sequence[Node], autoscaler: Autoscaler
) -> Need:
    """The type that is tried first, else nodes as they are."""
    label = config.cluster.train_nodes
    kinds = [k for k in autoscaler.types if k.has(label) and (k.gpus or not workers.on_gpus)]
    kinds = [k for k in kinds if k.resources]
    if kinds:
        first = max(kinds, key=lambda kind: kind.priority)
        each = (
            first.gpus if workers.on_gpus else _cpu_workers(config, first.resources.get("CPU", 0))
        )
        return Need(math.ceil(workers.expected / max(1, each)), str(first))
    places = [n for n in nodes if n.has(label) and (n.gpus or not workers.on_gpus)]
    if not places:
        return Need(0, "no node that could train")
    largest = max(places, key=lambda node: (node.gpus, node.resources.get("CPU", 0)))
    each = (
        largest.gpus if workers.on_gpus else _cpu_workers(config, largest.resources.get("CPU", 0))
    )
    what = f"{largest.gpus} GPUs" if workers.on_gpus else f"{largest.resources['CPU']:g} CPUs"
    return Need(math.ceil(workers.expected / max(1, each)), f"node of {what}")


def _cpu_workers(config: Config, cpus: float) -> int:
    return int(cpus / (1 + config.data.decode_cpus))


def _on_nodes(config: Config, cpus: float, nodes: Sequence[Node], autoscaler: Autoscaler) -> str:
    """How many nodes decode, where there are such."""
    label = config.data.decode_nodes
    if not label:
        return " of the nodes that train"
    kinds: list[NodeType] = [
        kind for kind in autoscaler.types if kind.has(label) and kind.resources.get("CPU")
    ]
    if kinds:
        kind = max(kinds, key=lambda kind: kind.priority)
        count = math.ceil(cpus / kind.resources["CPU"])
        short = "" if count <= kind.most else f", of which at most {kind.most} may come"
        return f" = {count} x {kind}{short}"
    there = sum(node.resources.get("CPU", 0) for node in nodes if node.has(label))
    return f", of {there:g} that the nodes with {label} have"
