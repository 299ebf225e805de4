"""Whether each node's object store is in memory, and holds what is decoded ahead."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.streaming import MAX_SEGMENT_STEPS, SEGMENT_BYTES
from jobs.cli.config import Config
from jobs.diagnosis.finding import Finding, Level, gib, mib, number_of
from jobs.diagnosis.nodes import Node

AREA = "shared memory"
STORE = "object store"

LEAST_SHM = 256 * 2**20
"""Under it NCCL cannot set up its buffers between the GPUs of a machine; containers have 64 MiB
unless they are told otherwise."""


def judge_shared_memory(nodes: Sequence[Node]) -> list[Finding]:
    """/dev/shm of each node that trains or decodes."""
    working = [node for node in _working(nodes) if node.machine]
    if not working:
        return [Finding(Level.SKIPPED, AREA, "", "no node that trains or decodes is there now")]
    findings = []
    for node in working:
        assert node.machine
        size, store = node.machine.shm_bytes, int(node.resources.get("object_store_memory", 0))
        if size >= max(LEAST_SHM, store):
            continue
        effect = (
            f"less than the object store of {mib(store)}, which Ray then keeps on the disk"
            if size < store
            else "NCCL needs more between the GPUs of a machine"
        )
        findings.append(
            Finding(
                Level.FAILURE,
                AREA,
                mib(size),
                f"/dev/shm of {node.name} is too small: {effect}",
                "run the container with --shm-size=16g (docker: run_options in cluster.yaml), or "
                "mount a larger tmpfs at /dev/shm",
                {"node": node.address, "shm_bytes": size, "object_store_bytes": store},
            )
        )
    if findings:
        return findings
    least = min(node.machine.shm_bytes for node in working if node.machine)
    return [
        Finding(
            Level.OK,
            AREA,
            gib(least),
            f"/dev/shm, the smallest of {number_of(len(working), 'node')}, holds the object store",
            values={"shm_bytes": least},
        )
    ]


def judge_object_store(config: Config, nodes: Sequence[Node], workers: int) -> list[Finding]:
    """All object stores together against the segments that `workers` read."""
    working = _working(nodes)
    if not working:
        return [Finding(Level.SKIPPED, STORE, "", "no node that trains or decodes is there now")]
    there = sum(node.resources.get("object_store_memory", 0) for node in working)
    needed = workers * segment_bytes(config, workers)
    values = {"object_store_bytes": there, "needed_bytes": needed}
    told = f"decoded clips for {number_of(workers, 'worker')}, {mib(needed / workers)} each"
    if there < needed:
        return [
            Finding(
                Level.WARNING,
                STORE,
                gib(there),
                f"less than {told}: Ray will write clips to the disk and read them back",
                "give the nodes more memory and /dev/shm (Ray takes 30 % of the memory), or use "
                "fewer workers",
                values,
            )
        ]
    return [
        Finding(
            Level.OK,
            STORE,
            gib(there),
            f"on {number_of(len(working), 'node')}; holds {told}",
            values=values,
        )
    ]


def segment_bytes(config: Config, workers: int) -> int:
    """Of one worker's segment, which is as long as a whole run at most."""
    steps = min(MAX_SEGMENT_STEPS, config.train.max_steps)
    slots = config.train.layout(workers).slots_per_worker
    return min(SEGMENT_BYTES, steps * slots * config.data.clip_bytes)


def _working(nodes: Sequence[Node]) -> list[Node]:
    """Those that may run a task: a head without CPUs holds the driver alone."""
    return [node for node in nodes if node.resources.get("CPU", 0) > 0]
