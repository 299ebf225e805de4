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
    backend: str
    """What workers talk by: "nccl", or "gloo" on CPUs."""
    on_one_machine: bool

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroup


class _ProcessGroup(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True
    _folder: ScratchFolder | None = None

    def on_start(self, worker_group: Any, backend_config: Rendezvous) -> None:
        place: str | tuple[str, int]
        if backend_config.on_one_machine:
            # torch.distributed goes on using the file, whenever DeepSpeed makes a group of workers.
            self._folder = ScratchFolder("rendezvous")
            place = str(self._folder.path / "store")
        else:
            place = ray.get(worker_group.execute_single_async(0, open_store))
        workers, backend = len(worker_group), backend_config.backend
        ray.get(
            [
                worker_group.execute_single_async(rank, join, rank, workers, place, backend)
                for rank in range(workers)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Rendezvous) -> None:
        if self._folder is not None:
            self._folder.remove()


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


def join(rank: int, workers: int, place: str | tuple[str, int], backend: str) -> None:
    """Make this process one of the group that meets at `place`: a file, or what `open_store` gave.

    Raises RuntimeError where this worker should have a GPU that works, but has none.
    """
    import torch
    from torch.distributed import TCPStore, init_process_group  # type: ignore[attr-defined]

    if backend == "nccl" and not torch.cuda.is_available():
        raise RuntimeError(
            f"torch finds no GPU on {socket.gethostname()}, though Ray counts one there: look at "
            "`nvidia-smi` and the CUDA version that torch was built for"
        )
    if isinstance(place, str):
        where: dict[str, Any] = {"init_method": f"file://{place}"}
    else:
        interface = _interface(ray.util.get_node_ip_address())
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)
        where = {"store": _store if rank == 0 else TCPStore(*place, is_master=False)}
    init_process_group(backend, rank=rank, world_size=workers, **where)


def _interface(address: str) -> str:
    """Name of the network interface that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    raise RuntimeError(f"no network interface of {socket.gethostname()} has {address}")
