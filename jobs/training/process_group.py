"""How training workers find each other: on one machine by a file, on a cluster at an address of its
network. Left to itself, torch waits for them on every address that the machine has.

Ray Train's controller has what is here too, and is started sooner without torch: that is imported
by the workers alone.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray.train.backend import Backend, BackendConfig

from taehv.run.scratch import ScratchFolder

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

_store: TCPStore | None = None
"""Of the first worker, which keeps it as long as it lives: groups are made later too."""


@dataclass
class Rendezvous(BackendConfig):  # type: ignore[misc]
    """`backend` is what workers talk by: "nccl", or "gloo" on CPUs."""

    backend: str


class OnOneMachine(Rendezvous):
    @property
    def backend_cls(self) -> type[Backend]:
        return _OneMachineBackend


class OnCluster(Rendezvous):
    @property
    def backend_cls(self) -> type[Backend]:
        return _ClusterBackend


class _OneMachineBackend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Rendezvous) -> None:
        # torch.distributed goes on using the file, whenever DeepSpeed makes a group of workers.
        self._folder = ScratchFolder("rendezvous")
        store = str(self._folder.path / "store")
        _all_join(worker_group, join_by_file, store, backend_config.backend)

    def on_shutdown(self, worker_group: Any, backend_config: Rendezvous) -> None:
        self._folder.remove()


class _ClusterBackend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Rendezvous) -> None:
        place = ray.get(worker_group.execute_single_async(0, open_store))
        _all_join(worker_group, join_at_address, place, backend_config.backend)


def _all_join(worker_group: Any, join: Any, *more: Any) -> None:
    workers = len(worker_group)
    ray.get(
        [
            worker_group.execute_single_async(rank, join, rank, workers, *more)
            for rank in range(workers)
        ]
    )


def join_by_file(rank: int, workers: int, store: str, backend: str) -> None:
    """Make this process one of the group that meets by the file `store`."""
    from torch import distributed

    check_device(backend)
    distributed.init_process_group(
        backend, init_method=f"file://{store}", rank=rank, world_size=workers
    )


def open_store() -> tuple[str, int]:
    """Open the store on the first worker; its address and port."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

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


def join_at_address(rank: int, workers: int, place: tuple[str, int], backend: str) -> None:
    """Make this process one of the group whose store is at `place`."""
    from torch import distributed
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    check_device(backend)
    interface = _interface(ray.util.get_node_ip_address())
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, interface)
    store = _store if rank == 0 else TCPStore(*place, is_master=False)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=workers)


def check_device(backend: str) -> None:
    """Raises RuntimeError where this worker should have a GPU that works, but has none."""
    import torch

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
