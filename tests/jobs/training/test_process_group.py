"""Workers find each other at one address of the machine, and nowhere else."""

import multiprocessing
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil
import pytest
import ray
import torch
import torch.distributed as dist

from jobs.cli.config import ClusterConfig
from jobs.cluster.capacity import Allocation
from jobs.training import process_group
from jobs.training.process_group import Rendezvous
from jobs.training.trainer import _rendezvous

ADDRESS = "127.0.0.3"
"""Of this machine, and no other process's."""


class Workers:
    """A worker group of processes."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.processes = [ProcessPoolExecutor(1, mp_context=context) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.processes)

    def execute_single_async(self, rank: int, function: Callable[..., Any], *more: Any) -> Any:
        return self.processes[rank].submit(_on_worker, function, *more)


def _on_worker(function: Callable[..., Any], *more: Any) -> Any:
    ray.util.get_node_ip_address = lambda: ADDRESS
    process_group._interface = lambda address: "lo"
    return function(*more)


def _sum_and_listeners() -> tuple[float, list[str]]:
    value = torch.ones(1)
    dist.all_reduce(value)
    places = [c for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"]
    return float(value), [str(place.laddr.ip) for place in places]


def test_two_workers_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answers: Any) -> Any:
        if isinstance(answers, list):
            return [answer.result(60) for answer in answers]
        return answers.result(60)

    monkeypatch.setattr(ray, "get", get)
    workers = Workers(2)
    try:
        config = Rendezvous(backend="gloo", on_one_machine=False)
        config.backend_cls().on_start(workers, config)
        for answer in [workers.execute_single_async(r, _sum_and_listeners) for r in range(2)]:
            total, places = answer.result(60)
            assert total == 2
            assert all(place.startswith("127.") for place in places), places
    finally:
        for process in workers.processes:
            process.shutdown()


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=f"no GPU on {socket.gethostname()}"):
        process_group.join(0, 1, (ADDRESS, 1), "nccl")
    with pytest.raises(RuntimeError, match=f"no GPU on {socket.gethostname()}"):
        process_group.join(0, 1, "store", "nccl")


def test_the_interface_of_an_address() -> None:
    assert process_group._interface("127.0.0.1") == "lo"
    with pytest.raises(RuntimeError, match=r"has 192\.0\.2\.99"):
        process_group._interface("192.0.2.99")


@pytest.mark.parametrize("own_ray", [True, False])
def test_workers_meet_over_what_they_were_given(own_ray: bool) -> None:
    on_gpu, on_cpu = (Allocation(1, use_gpu, 1.0, 1.0) for use_gpu in (True, False))
    for gpu, shares, backend in [
        ("yes", on_gpu, "nccl"),
        ("pretend", on_gpu, "gloo"),
        ("no", on_cpu, "gloo"),
    ]:
        config: Any = ClusterConfig(gpu=gpu)  # type: ignore[arg-type]
        assert _rendezvous(config, shares, own_ray).backend == backend
