"""Runs a function in several processes that form a process group, without Ray and without ports."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def run_workers(workers: int, function: Callable[..., object], *arguments: Any) -> None:
    """Run `function(*arguments)` in `workers` processes and wait; an error in one is raised.

    They are forked from a server that has no threads and has imported what training imports, which
    takes a process five seconds.
    """
    multiprocessing.set_forkserver_preload(["tests.helpers.preloaded"])
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        start_processes(  # type: ignore[no-untyped-call]
            _enter, (workers, store, function, arguments), nprocs=workers, start_method="forkserver"
        )


def _enter(
    rank: int, workers: int, store: str, function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    # With more, workers that share few cores wait for each other's threads most of the time.
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    function(*arguments)
    dist.barrier()
    dist.destroy_process_group()
    # Threads of torch that still wait for the interpreter when it is taken down abort the process
    # now and then ("terminate called without an active exception"), after all work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
