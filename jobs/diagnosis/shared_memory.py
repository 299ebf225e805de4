"""Whether each node's object store is in memory, and holds what is decoded ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_pipeline.streaming import MAX_SEGMENT_STEPS, SEGMENT_BYTES
from jobs.cli.config import Config
from jobs.diagnosis.finding import Finding, failure, gib, mib, number_of, ok, skipped, warning
from jobs.diagnosis.nodes import Node

AREA = "shared memory"
STORE = "object store"

MIN_SHM_BYTES = 256 * 2**20
"""Under it NCCL cannot set up its buffers between the GPUs of a machine; containers have 64 MiB
unless they are told otherwise."""


def judge_shared_memory(nodes: Sequence[Node]) -> list[Finding]:
    """/dev/shm of each node that trains or decodes."""
    sizes = [(node.machine.shm_bytes, node) for node in nodes if node.cpus and node.machine]
    if not sizes:
        return [skipped(AREA, "no node that trains or decodes is there now")]
    findings = []
    for size, node in sizes:
        store = int(node.resources.get("object_store_memory", 0))
        if size >= max(MIN_SHM_BYTES, store):
            continue
        effect = (
            f"less than the object store of {mib(store)}, which Ray then keeps on the disk"
            if size < store
            else "NCCL needs more between the GPUs of a machine"
        )
        findings.append(
            failure(
                AREA,
                f"/dev/shm of {node.name} is too small: {effect}",
                "run the container with --shm-size=16g (docker: run_options in cluster.yaml), or "
                "mount a larger tmpfs at /dev/shm",
                mib(size),
                node=node.address,
                shm_bytes=size,
                object_store_bytes=store,
            )
        )
    least = min(size for size, _ in sizes)
    held = f"/dev/shm, the smallest of {number_of(len(sizes), 'node')}, holds the object store"
    return findings or [ok(AREA, held, gib(least), shm_bytes=least)]


def judge_object_store(config: Config, nodes: Sequence[Node], workers: int) -> Iterator[Finding]:
    """All object stores together against the segments that `workers` read."""
    working = [node for node in nodes if node.cpus]
    there = sum(node.resources.get("object_store_memory", 0) for node in working)
    needed = workers * segment_bytes(config, workers)
    values = {"object_store_bytes": there, "needed_bytes": needed}
    clips = f"decoded clips for {number_of(workers, 'worker')}, {mib(needed / workers)} each"
    if not working:
        yield skipped(STORE, "no node that trains or decodes is there now")
    elif there < needed:
        yield warning(
            STORE,
            f"less than {clips}: Ray will write clips to the disk and read them back",
            "give the nodes more memory and /dev/shm (Ray takes 30 % of the memory), or use "
            "fewer workers",
            gib(there),
            **values,
        )
    else:
        yield ok(
            STORE, f"on {number_of(len(working), 'node')}; holds {clips}", gib(there), **values
        )


def segment_bytes(config: Config, workers: int) -> int:
    """Of one worker's segment, which is as long as a whole run at most."""
    steps = min(MAX_SEGMENT_STEPS, config.train.max_steps)
    slots = config.train.layout(workers).slots_per_worker
    return min(SEGMENT_BYTES, steps * slots * config.data.clip_bytes)
