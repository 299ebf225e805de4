"""Whether the chosen batch fits the memory of the machines that train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.cli.config import Config
from jobs.diagnosis.finding import Finding, Level, gib
from jobs.diagnosis.nodes import Node
from taehv.training.footprint import Footprint, footprint
from taehv.training.memory import USABLE

AREA = "batch memory"


@dataclass(frozen=True)
class Estimate:
    """Of one worker, of how many, and what its pass holds."""

    memory: Footprint
    workers: int
    clips_per_pass: int
    bf16: bool


def estimate(config: Config, workers: int, on_real_gpus: bool) -> Estimate:
    """By the networks' own shapes."""
    precision = config.train.precision
    bf16 = precision == "bf16" or (precision == "auto" and on_real_gpus)
    layout = config.train.layout(workers)
    data = config.data
    shape = (data.num_frames, 3, data.height, data.width)
    return Estimate(footprint(config, layout, shape, bf16), workers, layout.slots_per_pass, bf16)


def judge_memory(config: Config, estimated: Estimate, nodes: Sequence[Node]) -> list[Finding]:
    """Against the smallest GPU that is there, or, on CPUs, the memory of a node."""
    data, memory = config.data, estimated.memory
    message = (
        f"a worker, estimated: {gib(memory.between_passes)} at rest, {gib(memory.one_pass)} for a "
        f"pass of {estimated.clips_per_pass} clips of {data.num_frames}x{data.height}x{data.width} "
        f"in {'bf16' if estimated.bf16 else 'fp32'}"
    )
    if config.teacher.path:
        message += ", without the teacher, which needs some more"
    values = {
        "at_rest_bytes": memory.between_passes,
        "pass_bytes": memory.one_pass,
        "clips_per_pass": estimated.clips_per_pass,
        "workers": estimated.workers,
    }
    figure, room, whose = gib(memory.total), *_room(config, estimated, nodes)
    if not room:
        return [Finding(Level.OK, AREA, figure, f"{message}; no GPU is there to compare with")]
    values["memory_bytes"] = room
    if memory.total > USABLE * room:
        fewer = config.train.slots_per_group
        return [
            Finding(
                Level.FAILURE,
                AREA,
                figure,
                f"{message}: too much for {whose}, {gib(room)}",
                f"set --train.max-clips-per-pass {fewer} or more, --train.gradient-checkpointing, "
                "a smaller --data.height and --data.width, or --train.auto-micro-batch",
                values,
            )
        ]
    return [Finding(Level.OK, AREA, figure, f"{message}; {whose} has {gib(room)}", values=values)]


def _room(config: Config, estimated: Estimate, nodes: Sequence[Node]) -> tuple[int, str]:
    """Bytes for one worker, and of what; 0 where that is not known."""
    places = [node for node in nodes if node.machine and node.has(config.cluster.train_nodes)]
    gpus = [gpu for node in places if node.machine for gpu in node.machine.gpus]
    if any(node.gpus for node in places) and config.cluster.gpu in ("auto", "yes"):
        least = min(gpus, key=lambda gpu: gpu.memory_bytes, default=None)
        return (least.memory_bytes, f"a GPU ({least.name})") if least else (0, "")
    if config.cluster.gpu == "yes":
        return 0, ""
    shares = [
        node.machine.memory_bytes // max(1, -(-estimated.workers // len(places)))
        for node in places
        if node.machine
    ]
    return (min(shares), "a worker's part of its machine") if shares else (0, "")
