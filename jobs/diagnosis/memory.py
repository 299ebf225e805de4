"""Whether memory suffices: for the batch on the machines that train, and for what is decoded ahead
in each node's object store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_pipeline.streaming import MAX_SEGMENT_STEPS, SEGMENT_BYTES
from jobs.cli.config import Config
from jobs.diagnosis.finding import Finding, failure, gib, mib, number_of, ok, skipped, warning
from jobs.diagnosis.nodes import Node
from taehv.training.footprint import Footprint, footprint
from taehv.training.memory import USABLE

BATCH, SHARED_MEMORY, STORE = "batch memory", "shared memory", "object store"

MIN_SHM_BYTES = 256 * 2**20
"""Under it NCCL cannot set up its buffers between the GPUs of a machine; containers have 64 MiB
by default."""


@dataclass(frozen=True)
class Estimate:
    """Memory of one worker in a stage of the run, of how many there are, and what its pass
    holds."""

    memory: Footprint
    workers: int
    clips_per_pass: int
    clip: str
    """Frames, height and width."""
    bf16: bool
    stage: str
    """Which one; empty where the run has no stages."""


def estimate(config: Config, workers: int, on_real_gpus: bool) -> list[Estimate]:
    """Of each stage, by the networks' own shapes."""
    precision, stages = config.train.precision, len(config.train.stages)
    bf16 = precision == "bf16" or (precision == "auto" and on_real_gpus)
    estimates = []
    for number in range(max(1, stages)):
        own = config.of_stage(number)
        data, layout = own.data, own.train.layout(workers)
        shape = (data.num_frames, 3, data.height, data.width)
        estimates.append(
            Estimate(
                footprint(own, layout, shape, bf16),
                workers,
                layout.slots_per_pass,
                f"{data.num_frames}x{data.height}x{data.width}",
                bf16,
                f"stage {number + 1} of {stages}, " if stages else "",
            )
        )
    return estimates


def judge_memory(
    config: Config, estimates: Sequence[Estimate], nodes: Sequence[Node]
) -> Iterator[Finding]:
    """Against the smallest GPU that is there, or, on CPUs, the memory of a node."""
    for estimated in estimates:
        yield from _judge_memory(config, estimated, nodes)


def _judge_memory(config: Config, estimated: Estimate, nodes: Sequence[Node]) -> Iterator[Finding]:
    memory = estimated.memory
    message = (
        f"{estimated.stage}a worker, estimated: {gib(memory.between_passes)} at rest, "
        f"{gib(memory.one_pass)} for a pass of {estimated.clips_per_pass} clips of "
        f"{estimated.clip} in {'bf16' if estimated.bf16 else 'fp32'}"
    )
    if config.teacher.path:
        message += ", without the teacher, which needs some more"
    figure = gib(memory.total)
    available, of_what = _memory_per_worker(config, estimated, nodes)
    values = {
        "at_rest_bytes": memory.between_passes,
        "pass_bytes": memory.one_pass,
        "clips_per_pass": estimated.clips_per_pass,
        "workers": estimated.workers,
        "memory_bytes": available,
    }
    if not available:
        yield ok(BATCH, f"{message}; no GPU is there to compare with", figure)
    elif memory.total > USABLE * available:
        yield failure(
            BATCH,
            f"{message}: too much for {of_what}, {gib(available)}",
            f"set --train.max-clips-per-pass {config.train.slots_per_group} or more, "
            "--train.gradient-checkpointing, a smaller --data.height and --data.width, or "
            "--train.auto-micro-batch",
            figure,
            **values,
        )
    else:
        yield ok(BATCH, f"{message}; {of_what} has {gib(available)}", figure, **values)


def _memory_per_worker(
    config: Config, estimated: Estimate, nodes: Sequence[Node]
) -> tuple[int, str]:
    """Bytes for one worker, and of what; 0 where that is not known."""
    places = [node for node in nodes if node.machine and node.has(config.cluster.train_nodes)]
    if any(node.gpus for node in places) and config.cluster.gpu in ("auto", "yes"):
        gpus = [gpu for node in places for gpu in node.gpus_seen]
        least = min(gpus, key=lambda gpu: gpu.memory_bytes, default=None)
        return (least.memory_bytes, f"a GPU ({least.name})") if least else (0, "")
    if config.cluster.gpu == "yes" or not places:
        return 0, ""
    workers_per_node = max(1, -(-estimated.workers // len(places)))
    least_memory = min(node.machine.memory_bytes for node in places if node.machine)
    return least_memory // workers_per_node, "a worker's part of its machine"


def judge_shared_memory(nodes: Sequence[Node]) -> list[Finding]:
    """/dev/shm of each node that trains or decodes."""
    sizes = [(node.machine.shm_bytes, node) for node in nodes if node.cpus and node.machine]
    if not sizes:
        return [skipped(SHARED_MEMORY, "no node that trains or decodes is there now")]
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
                SHARED_MEMORY,
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
    return findings or [ok(SHARED_MEMORY, held, gib(least), shm_bytes=least)]


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
    """Of one worker's segment, the largest of any stage, which is as long as a stage at most."""
    sizes = []
    for number, stage_steps in enumerate(config.train.steps_of_stages()):
        own = config.of_stage(number)
        slots = own.train.layout(workers).slots_per_worker
        sizes.append(min(MAX_SEGMENT_STEPS, len(stage_steps)) * slots * own.data.clip_bytes)
    return min(SEGMENT_BYTES, max(sizes))
