"""Pieces of work done in this process, or by Ray Data on the nodes of a cluster; the same results.

Work is a function of (what all pieces share, the piece). What they share, a network for instance,
is put into the object store once.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from data_pipeline.errors import DataError
from data_pipeline.storage import is_s3
from jobs.config import ClusterConfig, ConfigError
from jobs.shared import is_job_copy
from taehv.errors import TrainingError

log = logging.getLogger(__name__)

Shared = TypeVar("Shared", contravariant=True)
Piece = TypeVar("Piece", contravariant=True)
Result = TypeVar("Result", covariant=True)

MOST_BLOCKS = 4096
"""Beyond it several pieces are one task, whose results come together."""

RAY_DATA_THREADS = "iter_threaded"
"""What Ray Data calls the threads in which it fetches results."""


@dataclass(frozen=True)
class RayConfig:
    """Where the work is done."""

    use: Literal["auto", "yes", "no"] = "auto"
    """auto: on the cluster in RAY_ADDRESS, or in this process where that is not set. yes: without
    a cluster by a Ray of this machine. no: in this process."""
    workers: int = 0
    """Most workers; 0: one per GPU that is there, or per CPU where there is no GPU. A number lets
    an autoscaler bring as many."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """Whether workers take GPUs. auto: where there is one at the start; yes: also where the
    autoscaler has yet to bring it."""
    gpu_share: float = 1.0
    """Part of a GPU that a worker takes: with 0.25 four of them, each with its decoder, share one.
    """

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"ray.workers is {self.workers}: it cannot be negative")
        if not 0 < self.gpu_share <= 1:
            raise ValueError(f"ray.gpu_share is {self.gpu_share}: it must be above 0, at most 1")

    @property
    def wanted(self) -> bool:
        """Whether Ray is used."""
        return self.use == "yes" or (self.use == "auto" and bool(os.environ.get("RAY_ADDRESS")))


def check_lasting(option: str, folder: str) -> None:
    """Raises ConfigError for a folder that would be gone with the job."""
    if is_job_copy(Path.cwd()) and not (is_s3(folder) or Path(folder).is_absolute()):
        raise ConfigError(
            f"{option} {folder}: a submitted job runs in a copy of the code that Ray throws away; "
            "give an absolute path that all nodes share, or s3://"
        )


class Worker(Protocol[Piece, Result]):
    """Does one piece after the other, in one process."""

    def __call__(self, piece: Piece, /) -> Result: ...

    def close(self) -> None: ...


class FanOut:
    """See `fan_out`."""

    has_gpus = False
    """Whether the workers sit on GPUs that this process may not have."""

    def each(
        self,
        worker: Callable[[Shared], Worker[Piece, Result]],
        shared: Shared,
        pieces: Sequence[Piece],
    ) -> Generator[Result]:
        """The result of every piece, in any order.

        Raises the TrainingError or DataError that a piece ended with.
        """
        if not pieces:
            return
        with closing(worker(shared)) as work:
            for piece in pieces:
                yield work(piece)


@contextmanager
def fan_out(config: RayConfig) -> Iterator[FanOut]:
    """Something that spreads work, connected for as long as the context."""
    if not config.wanted:
        yield FanOut()
        return
    # Ray takes seconds to import.
    from jobs import cluster

    with cluster.connected(ClusterConfig(), decode_cpus=0) as own:
        yield _RayFanOut(config, own)


class _RayFanOut(FanOut):
    def __init__(self, config: RayConfig, own: bool) -> None:
        """own: whether it is a Ray of this machine, which no node can join."""
        import ray

        self._share = config.gpu_share
        there = ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        self.has_gpus = config.gpu == "yes" or (config.gpu == "auto" and gpus > 0)
        if self.has_gpus and not gpus and own:
            raise TrainingError("--ray.gpu yes: this machine has no GPU")
        room = math.floor(gpus / self._share) if self.has_gpus else cpus
        self._workers = config.workers or max(1, room)

    def each(
        self,
        worker: Callable[[Shared], Worker[Piece, Result]],
        shared: Shared,
        pieces: Sequence[Piece],
    ) -> Generator[Result]:
        import numpy as np
        import ray
        import ray.data
        from ray.data import DataContext

        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # One long video may take hours.
        context.execution_no_progress_timeout_s = -1
        # What is left at WARNING is that progress bars are off.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        blocks = np.array_split(np.arange(len(pieces)), min(len(pieces), MOST_BLOCKS))
        rows = [{"pieces": pickle.dumps([pieces[k] for k in block])} for block in blocks]
        workers = min(self._workers, len(pieces))
        needs = f"{self._share:g} GPU and 1 CPU" if self.has_gpus else "1 CPU"
        log.info("asking Ray for up to %d workers with %s each", workers, needs)
        with DataContext.current(context):
            results = iter(
                ray.data.from_items(rows, override_num_blocks=len(rows))
                .map_batches(
                    _Actor,
                    fn_constructor_args=(worker, [ray.put(shared)]),
                    batch_size=None,
                    batch_format="pyarrow",
                    concurrency=(1, workers) if workers > 1 else 1,
                    num_cpus=1,
                    **({"num_gpus": self._share} if self.has_gpus else {}),
                )
                .iter_rows()
            )
        try:
            for row in results:
                # Written by our own worker, on a cluster of our own.
                result = pickle.loads(row["result"])
                if isinstance(result, (TrainingError, DataError)):
                    raise result
                yield result
        finally:
            results.close()
            # A thread that meets a Ray that is shut down takes the process with it.
            for thread in threading.enumerate():
                if thread.name == RAY_DATA_THREADS:
                    thread.join(timeout=10)


class _Actor:
    """A worker in a process of Ray's. What only the user can mend travels as a result, since Ray
    would wrap it and might try again."""

    def __init__(self, worker: Callable[[Any], Worker[Any, Any]], shared: Sequence[Any]) -> None:
        import ray

        self._worker = worker(ray.get(shared[0]))

    def __call__(self, block: Any) -> dict[str, Any]:
        results = []
        for piece in pickle.loads(block.column("pieces")[0].as_py()):
            try:
                results.append(self._worker(piece))
            except (TrainingError, DataError) as error:
                results.append(error)
        return {"result": [pickle.dumps(result) for result in results]}
