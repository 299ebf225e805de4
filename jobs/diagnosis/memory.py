"""Whether the chosen batch fits the memory of the machines that train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.cli.config import Config
from jobs.diagnosis.finding import Finding, failure, gib, ok
from jobs.diagnosis.nodes import Node
from taehv.training.footprint import Footprint, footprint
from taehv.training.memory import USABLE

AREA = "batch memory"


@dataclass(frozen=True)
class Estimate:
    """Memory of one worker, of how many there are, and what its pass holds."""

    memory: Footprint
    workers: int
    clips_per_pass: int
    bf16: bool


def estimate(config: Config, workers: int, on_real_gpus: bool) -> Estimate:
    """By the networks' own shapes."""
    precision, data = config.train.precision, config.data
    bf16 = precision == "bf16" or (precision == "auto" and on_real_gpus)
    layout = config.train.layout(workers)
    shape = (data.num_frames, 3, data.height, data.width)
    return Estimate(footprint(config, layout, shape, bf16), workers, layout.slots_per_pass, bf16)


def judge_memory(config: Config, estimated: Estimate, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Against the smallest GPU that is there, or, on CPUs, the memory of a node."""
    data, memory = config.data, estimated.memory
    message = (
        f"a worker, estimated: {gib(memory.between_passes)} at rest, {gib(memory.one_pass)} for a "
        f"pass of {estimated.clips_per_pass} clips of {data.num_frames}x{data.height}x{data.width} "
        f"in {'bf16' if estimated.bf16 else 'fp32'}"
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
        yield ok(AREA, f"{message}; no GPU is there to compare with", figure)
    elif memory.total > USABLE * available:
        yield failure(
            AREA,
            f"{message}: too much for {of_what}, {gib(available)}",
            f"set --train.max-clips-per-pass {config.train.slots_per_group} or more, "
            "--train.gradient-checkpointing, a smaller --data.height and --data.width, or "
            "--train.auto-micro-batch",
            figure,
            **values,
        )
    else:
        yield ok(AREA, f"{message}; {of_what} has {gib(available)}", figure, **values)


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
