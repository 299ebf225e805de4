"""How the training workers of a cluster find each other: at an address of the cluster's network.

Left to itself, torch waits for them on every address that the machine has.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import psutil
import ray
import torch
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore  # type: ignore[attr-defined]

_store: TCPStore | None = None
"""Of the first worker, which keeps it as long as it lives: groups are made later too."""


@dataclass
class ClusterTorchConfig(TorchConfig):  # type: ignore[misc]
    """`backend` is what workers talk by: "nccl", or "gloo" on CPUs."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _ClusterBackend


class _ClusterBackend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        workers = len(worker_group)
        place = ray.get(worker_group.execute_single_async(0, open_store))
        joining = [
            worker_group.execute_single_async(
                rank, join, rank, workers, place, backend_config.backend
            )
            for rank in range(workers)
        ]
        ray.get(joining)


def open_store() -> tuple[str, int]:
    """Open the store on the first worker; its address and port."""
    global _store
    address = ray.util.get_node_ip_address()
    listening = socket.create_server((address, 0))
    port = listening.getsockname()[1]
    _store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )
    return address, port


def join(rank: int, workers: int, place: tuple[str, int], backend: str) -> None:
    """Make this process one of the group whose store is at `place`."""
    check_device(backend)
    interface = _interface(ray.util.get_node_ip_address())
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, interface)
    store = _store if rank == 0 else TCPStore(*place, is_master=False)
    dist.init_process_group(backend, store=store, rank=rank, world_size=workers)


def check_device(backend: str) -> None:
    """Raises RuntimeError where this worker should have a GPU that works, but has none."""
    if backend == "nccl" and not torch.cuda.is_available():
        raise RuntimeError(
            f"torch finds no GPU on {socket.gethostname()}, though Ray counts one there: look at "
            "`nvidia-smi` and the CUDA version that torch was built for"
        )


def _interface(address: str) -> str:
    """Name of the network interface that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    raise RuntimeError(f"no network interface of {socket.gethostname()} has {address}")
