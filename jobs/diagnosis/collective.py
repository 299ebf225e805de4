"""An all-reduce between the nodes that train: that it works, and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

from jobs.cli.config import Config
from jobs.cluster.nodes import on_node
from jobs.diagnosis.finding import Finding, failure, number_of, ok, skipped, warning
from jobs.diagnosis.nodes import Node
from jobs.diagnosis.plain_errors import plain_error
from jobs.training.process_group import join, open_store

AREA = "all-reduce"

START_SECONDS = 90.0
"""For a process on every node, which imports torch."""

REDUCE_SECONDS = 90.0
"""For the group to form and to exchange."""

MESSAGE_BYTES = 32 * 2**20
ROUNDS = 5

SLOW_SECONDS = 0.5
"""For the gradients of a step to be exchanged; more is worth a warning."""

MAX_RANKS = 64


@dataclass(frozen=True)
class Reduction:
    """What came of an attempt."""

    backend: str
    ranks: int
    nodes: int
    seconds: float = 0.0
    """Of the fastest round of `MESSAGE_BYTES`, as the slowest rank saw it."""
    silent: tuple[str, ...] = ()
    """Names of nodes that did not start a process in time."""
    error: str = ""

    @property
    def rounds_per_link(self) -> float:
        """How often the whole message passes each link, by NCCL's own tests:
        https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md"""
        return 2 * (self.ranks - 1) / self.ranks

    @property
    def bytes_per_second(self) -> float:
        """Through the slowest link: the "bus bandwidth" of those tests."""
        return self.rounds_per_link * MESSAGE_BYTES / self.seconds


class _Rank:
    """A process of the group."""

    def is_ready(self) -> bool:
        return True

    def open_store(self) -> tuple[str, int]:
        return open_store()

    def reduce(self, backend: str, rank: int, ranks: int, address: tuple[str, int]) -> float:
        """Seconds of the fastest round. Raises RuntimeError where the sum is wrong."""
        join(rank, ranks, address, backend)
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
    places = [
        node
        for node in nodes
        if node.has(config.cluster.train_nodes) and (node.gpus if on_gpus else node.cpus)
    ]
    node_of_rank = [node for node in places for _ in range(node.gpus if nccl else 1)]
    node_of_rank = node_of_rank[: min(MAX_RANKS, config.cluster.max_workers or MAX_RANKS)]
    if len(node_of_rank) < (1 if nccl else 2):
        return None
    actor = ray.remote(num_cpus=0, num_gpus=1 if nccl else 0)(_Rank)
    ranks = [actor.options(scheduling_strategy=on_node(node.id)).remote() for node in node_of_rank]
    try:
        return _reduce("nccl" if nccl else "gloo", ranks, node_of_rank)
    finally:
        for rank in ranks:
            ray.kill(rank)


def _reduce(backend: str, ranks: Sequence[Any], node_of_rank: Sequence[Node]) -> Reduction:
    size = len(ranks)
    attempt = Reduction(backend, size, len({node.id for node in node_of_rank}))
    started = {rank.is_ready.remote(): node for rank, node in zip(ranks, node_of_rank, strict=True)}
    _, late = ray.wait(list(started), num_returns=size, timeout=START_SECONDS)
    if late:
        return replace(attempt, silent=tuple(sorted({started[call].name for call in late})))
    try:
        address = ray.get(ranks[0].open_store.remote(), timeout=START_SECONDS)
        calls = [rank.reduce.remote(backend, k, size, address) for k, rank in enumerate(ranks)]
        seconds = max(ray.get(calls, timeout=START_SECONDS + REDUCE_SECONDS))
    except GetTimeoutError:
        return replace(attempt, error=f"no result in {REDUCE_SECONDS:g} s")
    except ActorDiedError:
        return replace(attempt, error="a process died of it")
    except RayError as error:
        return replace(attempt, error=plain_error(str(error)))
    return replace(attempt, seconds=seconds)


def judge_collective(
    reduction: Reduction | None, workers: int, gradient_bytes: int
) -> Iterator[Finding]:
    """`workers`: how many are expected; `gradient_bytes`: what they exchange in a step."""
    if reduction is None:
        if workers == 1:
            yield ok(AREA, "none is needed: there is one worker")
        else:
            yield skipped(AREA, "needs two nodes that train, or a GPU; there are none now")
        return
    processes = number_of(reduction.ranks, "process")
    who = f"{processes} on {number_of(reduction.nodes, 'node')}, {reduction.backend}"
    if reduction.silent:
        yield warning(
            AREA,
            f"no process started in {START_SECONDS:g} s on {', '.join(reduction.silent)}: other "
            "jobs may hold the GPUs",
            "try again when `ray status` shows them free",
        )
    elif reduction.error:
        yield failure(
            AREA,
            f"{who}: {reduction.error}",
            "nodes must reach each other on all ports (the security group's rule for itself); "
            "NCCL_DEBUG=INFO tells what it tries, NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME "
            "choose the network interface",
            ranks=reduction.ranks,
            backend=reduction.backend,
        )
    elif reduction.ranks == 1:
        yield ok(AREA, "torch and NCCL can use it", "1 GPU")
    else:
        yield _judge_speed(reduction, who, gradient_bytes)


def _judge_speed(reduction: Reduction, who: str, gradient_bytes: int) -> Finding:
    speed = reduction.bytes_per_second
    step = reduction.rounds_per_link * gradient_bytes / speed
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
        return warning(AREA, message, advice, figure, **values)
    return ok(AREA, message, figure, **values)
