"""Work on many pieces, done in this process or by Ray on the nodes of a cluster, with the same
results.

Work is a function of (what all pieces share, the piece). What they share, a network for instance,
is put into the object store once.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from data_pipeline.errors import DataError
from data_pipeline.videos.storage import is_s3
from jobs.cli.config import ClusterConfig
from jobs.cli.errors import ConfigError
from jobs.cli.paths import is_job_copy
from taehv.errors import TrainingError

log = logging.getLogger(__name__)

Shared = TypeVar("Shared", contravariant=True)
Piece = TypeVar("Piece", contravariant=True)
Result = TypeVar("Result", covariant=True)


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
    """Spreads work over `workers` of Ray's, with `gpu_share` of a GPU each; without workers, does
    it in this process."""

    def __init__(self, workers: int = 0, gpu_share: float = 0.0) -> None:
        self._workers, self._gpu_share = workers, gpu_share

    @property
    def has_gpus(self) -> bool:
        """Whether the workers sit on GPUs that this process may not have."""
        return self._gpu_share > 0

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
        if self._workers:
            yield from self._each_by_ray(worker, shared, pieces)
            return
        with closing(worker(shared)) as work:
            for piece in pieces:
                yield work(piece)

    def _each_by_ray(self, worker: Any, shared: Any, pieces: Sequence[Any]) -> Generator[Any]:
        import ray

        workers = min(self._workers, len(pieces))
        needs = f"{self._gpu_share:g} GPU and 1 CPU" if self.has_gpus else "1 CPU"
        log.info("asking Ray for up to %d workers with %s each", workers, needs)
        # A worker that dies, with its node maybe, is started again, and does its piece again.
        process = ray.remote(
            num_cpus=1, num_gpus=self._gpu_share, max_restarts=-1, max_task_retries=-1
        )(_Process)
        # Within a list, which Ray does not look into: the object stays where it is until a worker
        # fetches it. Not given to the constructor: Ray warns of objects there.
        reference = [ray.put(shared)]
        todo = deque(pieces)
        started = [process.remote() for _ in range(workers)]
        actors = {actor.ready.remote().future(): actor for actor in started}
        """By what they are about to answer."""
        starting = set(actors)
        missing = len(pieces)
        try:
            while missing:
                # Python's own wait, which a signal ends.
                for future in wait(actors, return_when=FIRST_COMPLETED).done:
                    actor, result = actors.pop(future), future.result()
                    if isinstance(result, (TrainingError, DataError)):
                        raise result
                    if todo:
                        call = actor.work.remote(worker, reference, todo.popleft())
                        actors[call.future()] = actor
                    if future not in starting:
                        missing -= 1
                        yield result
        finally:
            for actor in actors.values():
                ray.kill(actor)


@contextmanager
def fan_out(config: RayConfig) -> Iterator[FanOut]:
    """Something that spreads work, connected for as long as the context."""
    if not config.wanted:
        yield FanOut()
        return
    # Ray takes seconds to import.
    import ray

    from jobs.cluster import connection

    with connection.connected(ClusterConfig(), decode_cpus=0) as own_ray:
        there = ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        on_gpus = config.gpu == "yes" or (config.gpu == "auto" and gpus > 0)
        if on_gpus and not gpus and own_ray:
            # No node can join it.
            raise TrainingError("--ray.gpu yes: this machine has no GPU")
        room = math.floor(gpus / config.gpu_share) if on_gpus else cpus
        yield FanOut(config.workers or max(1, room), config.gpu_share if on_gpus else 0.0)


class _Process:
    """A worker in a process of Ray's. What only the user can mend travels as a result, since Ray
    would wrap it."""

    def __init__(self) -> None:
        self._worker: Worker[Any, Any] | None = None

    def ready(self) -> None:
        """Answers once the process has started, which may have to wait for a node."""

    def work(self, worker: Any, reference: Sequence[Any], piece: Any) -> Any:
        import ray

        try:
            if self._worker is None:
                self._worker = worker(ray.get(reference[0]))
            return self._worker(piece)
        except (TrainingError, DataError) as error:
            return error
