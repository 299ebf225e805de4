"""An all-reduce between the nodes that train: that it works, and how fast."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

from jobs.cli.config import Config
from jobs.cluster.nodes import on_node
from jobs.diagnosis.finding import Finding, Level, number_of
from jobs.diagnosis.nodes import Node
from jobs.training.driver import last_line
from jobs.training.process_group import join, open_store

AREA = "all-reduce"

START_SECONDS = 90.0
"""For a process on every node, which imports torch."""

REDUCE_SECONDS = 90.0
"""For the group to form and to exchange."""

MESSAGE_BYTES = 32 * 2**20
ROUNDS = 5

SLOW_SECONDS = 0.5
"""Of a step, for gradients to be exchanged, is worth a warning."""

MOST_RANKS = 64


@dataclass(frozen=True)
class Reduction:
    """What an attempt came to."""

    backend: str
    ranks: int
    nodes: int
    seconds: float = 0.0
    """Of the fastest round of `MESSAGE_BYTES`, as the slowest rank saw it."""
    silent: tuple[str, ...] = ()
    """Names of nodes that did not start a process in time."""
    error: str = ""

    @property
    def bytes_per_second(self) -> float:
        """Through the slowest link: the "bus bandwidth" of NCCL's own tests, in
        https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md"""
        return 2 * (self.ranks - 1) / self.ranks * MESSAGE_BYTES / self.seconds


class _Rank:
    """A process of the group."""

    def is_ready(self) -> bool:
        return True

    def open_store(self) -> tuple[str, int]:
        return open_store()

    def reduce(self, backend: str, rank: int, ranks: int, place: tuple[str, int]) -> float:
        """Seconds of the fastest round. Raises RuntimeError where the sum is wrong."""
        join(rank, ranks, place, backend)
        # Ray shows this process the GPU that it was given, alone.
        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        values = torch.empty(MESSAGE_BYTES // 4, device=device)
        fastest = float("inf")
        for _ in range(ROUNDS):
            values.fill_(rank + 1)
            dist.barrier()
            begun = time.perf_counter()
            dist.all_reduce(values)
            # To read a value waits for the device.
            low, high = float(values.min()), float(values.max())
            fastest = min(fastest, time.perf_counter() - begun)
            if not low == high == ranks * (ranks + 1) / 2:
                raise RuntimeError(f"the sum over {ranks} ranks came out as {low} to {high}")
        dist.destroy_process_group()
        return fastest


def look_at_collective(config: Config, nodes: Sequence[Node], on_gpus: bool) -> Reduction | None:
    """Try it on the nodes that may train and are there; None where there are not two processes.

    On GPUs, a process for each GPU, also for a single one, to see that torch can use it; on CPUs
    one per node.
    """
    nccl = on_gpus and config.cluster.gpu != "pretend"
    places = [node for node in nodes if node.has(config.cluster.train_nodes)]
    if on_gpus:
        places = [node for node in places if node.gpus]
    else:
        places = [node for node in places if node.resources.get("CPU", 0) > 0]
    spots = [node for node in places for _ in range(node.gpus if nccl else 1)]
    spots = spots[: min(MOST_RANKS, config.cluster.max_workers or MOST_RANKS)]
    if len(spots) < (1 if nccl else 2):
        return None
    backend = "nccl" if nccl else "gloo"
    actor = ray.remote(_Rank)
    ranks = [
        actor.options(
            num_cpus=0, num_gpus=1 if nccl else 0, scheduling_strategy=on_node(node.id)
        ).remote()
        for node in spots
    ]
    try:
        return _reduce(backend, ranks, spots)
    finally:
        for rank in ranks:
            ray.kill(rank)


def _reduce(backend: str, ranks: Sequence[Any], spots: Sequence[Node]) -> Reduction:
    size, nodes = len(ranks), len({node.id for node in spots})
    started = [rank.is_ready.remote() for rank in ranks]
    ready, _ = ray.wait(started, num_returns=size, timeout=START_SECONDS)
    silent = {node.name for node, call in zip(spots, started, strict=True) if call not in ready}
    if silent:
        return Reduction(backend, size, nodes, silent=tuple(sorted(silent)))
    try:
        where = ray.get(ranks[0].open_store.remote(), timeout=START_SECONDS)
        calls = [rank.reduce.remote(backend, k, size, where) for k, rank in enumerate(ranks)]
        seconds = max(ray.get(calls, timeout=START_SECONDS + REDUCE_SECONDS))
    except GetTimeoutError:
        return Reduction(backend, size, nodes, error=f"no result in {REDUCE_SECONDS:g} s")
    except ActorDiedError:
        return Reduction(backend, size, nodes, error="a process died of it")
    except RayError as error:
        return Reduction(backend, size, nodes, error=last_line(error)[:400])
    return Reduction(backend, size, nodes, seconds)


def judge_collective(
    reduction: Reduction | None, workers: int, gradient_bytes: int
) -> list[Finding]:
    """`workers`: how many are expected; `gradient_bytes`: what they exchange in a step."""
    if reduction is None:
        if workers == 1:
            return [Finding(Level.OK, AREA, "", "none is needed: there is one worker")]
        message = "needs two nodes that train, or a GPU; there are none now"
        return [Finding(Level.SKIPPED, AREA, "", message)]
    where = number_of(reduction.nodes, "node")
    who = f"{number_of(reduction.ranks, 'process')} on {where}, {reduction.backend}"
    if reduction.silent:
        return [
            Finding(
                Level.WARNING,
                AREA,
                "",
                f"no process started in {START_SECONDS:g} s on "
                f"{', '.join(reduction.silent)}: other jobs may hold the GPUs",
                "try again when `ray status` shows them free",
            )
        ]
    if reduction.error:
        return [
            Finding(
                Level.FAILURE,
                AREA,
                "",
                f"{who}: {reduction.error}",
                "nodes must reach each other on all ports (the security group's rule for itself); "
                "NCCL_DEBUG=INFO tells what it tries, NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME "
                "choose the network interface",
                {"ranks": reduction.ranks, "backend": reduction.backend},
            )
        ]
    if reduction.ranks == 1:
        return [Finding(Level.OK, AREA, "1 GPU", "torch and NCCL can use it")]
    speed = reduction.bytes_per_second
    step = 2 * (reduction.ranks - 1) / reduction.ranks * gradient_bytes / speed
    values = {
        "bytes_per_second": speed,
        "step_seconds": step,
        "ranks": reduction.ranks,
        "nodes": reduction.nodes,
        "backend": reduction.backend,
    }
    figure = f"{speed / 1e9:.2f} GB/s"
    message = f"{who}; a step's gradients ({gradient_bytes / 1e6:.0f} MB) take {1000 * step:.0f} ms"
    if step > SLOW_SECONDS:
        advice = (
            "use one node with more GPUs, instances with a faster network, or nodes in one zone; "
            "a larger batch exchanges less often"
        )
        return [Finding(Level.WARNING, AREA, figure, message, advice, values)]
    return [Finding(Level.OK, AREA, figure, message, values=values)]
