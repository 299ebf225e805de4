"""Whether the GPUs that Ray hands out are there, with one driver."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.cli.config import Config
from jobs.diagnosis.finding import Finding, Level, number_of
from jobs.diagnosis.nodes import Node

AREA = "GPUs"


def judge_gpus(config: Config, nodes: Sequence[Node]) -> list[Finding]:
    """Ray's count, node by node, against the driver's."""
    if config.cluster.gpu == "no":
        return [Finding(Level.OK, AREA, "", "not wanted (cluster.gpu: no)")]
    with_gpus = [node for node in nodes if node.gpus]
    total = sum(node.gpus for node in with_gpus)
    if config.cluster.gpu == "pretend":
        return [
            Finding(Level.OK, AREA, f"{total} pretended", "training computes on the CPU instead")
        ]
    if not with_gpus:
        if config.cluster.gpu == "yes":
            return [Finding(Level.SKIPPED, AREA, "", "no node with a GPU is there now")]
        return [
            Finding(Level.OK, AREA, "", "no node has one: training is on CPUs (cluster.gpu: auto)")
        ]
    findings = [finding for node in with_gpus for finding in _judge_node(node)]
    drivers = {gpu.driver: node for node in with_gpus if node.machine for gpu in node.machine.gpus}
    if len(drivers) > 1:
        told = ", ".join(f"{driver} on {node.name}" for driver, node in sorted(drivers.items()))
        findings.append(
            Finding(
                Level.WARNING,
                AREA,
                number_of(len(drivers), "driver"),
                f"nodes differ in their driver: {told}",
                "use one image for all GPU nodes; NCCL between drivers is hardly tested by anyone",
            )
        )
    if not findings:
        names = sorted({g.name for n in with_gpus if n.machine for g in n.machine.gpus})
        findings.append(
            Finding(
                Level.OK,
                AREA,
                f"{total} on {number_of(len(with_gpus), 'node')}",
                f"{', '.join(names)}, driver {', '.join(drivers)}",
                values={"gpus": total, "nodes": len(with_gpus), "drivers": sorted(drivers)},
            )
        )
    return findings


def _judge_node(node: Node) -> list[Finding]:
    if node.machine is None:
        return []  # Told with the versions.
    seen = len(node.machine.gpus)
    values = {"node": node.address, "gpus": node.gpus, "gpus_seen": seen}
    if node.machine.gpu_error:
        return [
            Finding(
                Level.FAILURE,
                AREA,
                f"{node.gpus} by Ray",
                f"on {node.name} the driver cannot be asked: {node.machine.gpu_error}",
                "use an image with NVIDIA's driver; in a container, run it with --gpus all. For "
                "GPUs that are pretended, set --cluster.gpu pretend",
                values,
            )
        ]
    if seen < node.gpus:
        return [
            Finding(
                Level.FAILURE,
                AREA,
                f"{seen} of {node.gpus}",
                f"Ray hands out more GPUs on {node.name} than its driver sees",
                "one has failed, or `resources:` of its node type says too many: end the node, or "
                "leave the number to Ray",
                values,
            )
        ]
    return []
