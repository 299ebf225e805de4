"""The only file that uses torch.distributed: process group, ranks, device, collectives."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""How long a worker waits in a collective for another one whose clips have yet to be decoded, maybe
by a node that is still starting. Dead workers are detected without this."""

log = logging.getLogger(__name__)


def initialise() -> None:
    """Create the process group unless there is one, as under Ray Train.

    Under torchrun the environment describes it. A single process becomes a group of one over an
    in-memory store, so that no port is opened.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def set_collective_timeouts() -> None:
    """Give all process groups, DeepSpeed's too, `COLLECTIVE_TIMEOUT`. By default NCCL would end the
    process after 10 minutes and gloo after 30."""
    groups = dist.distributed_c10d
    for group in groups._world.pg_map:
        groups._set_pg_timeout(COLLECTIVE_TIMEOUT, group)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def device() -> torch.device:
    """This process's accelerator, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def on_device(values: Tensor, where: torch.device) -> Tensor:
    """A copy on the device `where`; asynchronous on a GPU."""
    if where.type == "cuda":
        return values.pin_memory().to(where, non_blocking=True)
    return values.to(where)


def pinned(values: np.ndarray) -> np.ndarray:
    """The values in pinned memory, if there is a GPU, where `on_device` wants them."""
    if not torch.cuda.is_available():
        return values
    return torch.from_numpy(values).pin_memory().numpy()


def sum_over_workers(values: Tensor) -> Tensor:
    """Element-wise sum over all workers, in place; every worker gets it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any]:
    """Every worker's (small, picklable) value, in rank order, on every worker."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """The main worker's value, on every worker."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors, which every worker has in the same order and shapes, by the main
    worker's."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()
