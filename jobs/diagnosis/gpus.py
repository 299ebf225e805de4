"""Whether the GPUs that Ray hands out are there, with one driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.cli.config import Config
from jobs.diagnosis.finding import Finding, failure, number_of, ok, skipped, warning
from jobs.diagnosis.nodes import Node

AREA = "GPUs"


def judge_gpus(config: Config, nodes: Sequence[Node]) -> list[Finding]:
    """Ray's count, node by node, against the driver's."""
    wanted = config.cluster.gpu
    with_gpus = [node for node in nodes if node.gpus]
    total = sum(node.gpus for node in with_gpus)
    if wanted == "no":
        return [ok(AREA, "not wanted (cluster.gpu: no)")]
    if wanted == "pretend":
        return [ok(AREA, "training computes on the CPU instead", f"{total} pretended")]
    if not with_gpus and wanted == "yes":
        return [skipped(AREA, "no node with a GPU is there now")]
    if not with_gpus:
        return [ok(AREA, "no node has one: training is on CPUs (cluster.gpu: auto)")]
    findings = [finding for node in with_gpus for finding in _judge_node(node)]
    drivers = {gpu.driver: node for node in with_gpus for gpu in node.gpus_seen}
    if len(drivers) > 1:
        where = ", ".join(f"{driver} on {node.name}" for driver, node in sorted(drivers.items()))
        findings.append(
            warning(
                AREA,
                f"nodes differ in their driver: {where}",
                "use one image for all GPU nodes; NCCL between drivers is hardly tested by anyone",
                number_of(len(drivers), "driver"),
            )
        )
    names = sorted({gpu.name for node in with_gpus for gpu in node.gpus_seen})
    return findings or [
        ok(
            AREA,
            f"{', '.join(names)}, driver {', '.join(drivers)}",
            f"{total} on {number_of(len(with_gpus), 'node')}",
            gpus=total,
            nodes=len(with_gpus),
            drivers=sorted(drivers),
        )
    ]


def _judge_node(node: Node) -> Iterator[Finding]:
    if node.machine is None:
        return  # The versions tell of it.
    seen = len(node.gpus_seen)
    values = {"node": node.address, "gpus": node.gpus, "gpus_seen": seen}
    if node.machine.gpu_error:
        yield failure(
            AREA,
            f"on {node.name} the driver cannot be asked: {node.machine.gpu_error}",
            "use an image with NVIDIA's driver; in a container, run it with --gpus all. For "
            "GPUs that are pretended, set --cluster.gpu pretend",
            f"{node.gpus} by Ray",
            **values,
        )
    elif seen < node.gpus:
        yield failure(
            AREA,
            f"Ray hands out more GPUs on {node.name} than its driver sees",
            "one has failed, or `resources:` of its node type says too many: end the node, or "
            "leave the number to Ray",
            f"{seen} of {node.gpus}",
            **values,
        )
