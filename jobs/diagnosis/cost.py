"""What a config takes in nodes: those that train, and those that decode for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from jobs.cli.config import Config
from jobs.diagnosis.autoscaler import Autoscaler
from jobs.diagnosis.capacity import Workers, workers_on
from jobs.diagnosis.data import Sample
from jobs.diagnosis.finding import Finding, number_of, ok, skipped, warning
from jobs.diagnosis.nodes import Node

AREA = "cost in nodes"

REFERENCE_CLIP = 9 * 128 * 128
"""Frames times pixels of the clip that `--gpu-clips-per-second` speaks of."""


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
        yield ok(AREA, message, figure, **values)
        return
    if sample is None or not sample.clips:
        reason = "what decoding takes is not known, since no clip was decoded"
        yield skipped(AREA, f"{message}; {reason}", figure, **values)
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
        yield warning(AREA, message, advice, figure, **values)
    else:
        yield ok(AREA, message, figure, **values)


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
