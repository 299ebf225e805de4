"""The only file that knows of ranks: process group, device, and the few collectives in use."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=2)
"""How long a worker waits in a collective for one whose clips have yet to be decoded, maybe by a
node that has yet to come. Workers that have died are noticed without that."""

log = logging.getLogger(__name__)


def initialise() -> None:
    """Make sure that a process group exists.

    Under Ray Train it does already; under torchrun the environment describes it; a bare process
    becomes a group of one, over an in-memory store, so that nothing listens on the network.
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


def be_patient() -> None:
    """Have all groups of workers, DeepSpeed's too, wait as long as `PATIENCE`; NCCL's own would
    after 10 minutes end the process, gloo's after 30."""
    groups = dist.distributed_c10d
    for group in groups._world.pg_map:
        groups._set_pg_timeout(PATIENCE, group)


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
    """A copy there, for which the CPU does not wait."""
    if where.type == "cuda":
        return values.pin_memory().to(where, non_blocking=True)
    return values.to(where)


def pinned(values: np.ndarray) -> np.ndarray:
    """The values in memory that the accelerator reads by itself: `on_device` then takes no time."""
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


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()
