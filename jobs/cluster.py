"""Ray: connecting to it, sharing its resources out, and starting the training workers."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from jobs.config import ClusterConfig
from taehv.errors import TrainingError

REPOSITORY = Path(__file__).resolve().parents[1]

log = logging.getLogger(__name__)


@contextmanager
def connected(config: ClusterConfig, decode_cpus: float) -> Iterator[bool]:
    """Ray for the length of a job: the cluster in RAY_ADDRESS, or one on this machine alone.

    Yields whether it is the latter.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    environment = {
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # Decoding takes cores from a training worker on the CPU; its threads must not spin in
        # wait for one that has none.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    own = not address
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if own:
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }
        ray.init(
            address="local",
            # Ray's CPUs are tickets: every worker and its decoding get theirs, even where they
            # have to share a core.
            num_cpus=max(
                os.cpu_count() or 1, math.ceil(max(1, config.workers) * (1 + decode_cpus))
            ),
            include_dashboard=False,
            runtime_env={"env_vars": environment},
            **quiet,
        )
    else:
        ray.init(address=address, runtime_env={"env_vars": environment}, **quiet)
    try:
        yield own
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Shares:
    """How the cluster's resources are shared out between training and decoding."""

    workers: int
    use_gpu: bool
    cpus_per_worker: float
    decode_cpus_per_worker: float
    """CPUs that the decoding tasks of one worker's stream may hold."""


def share_out(config: ClusterConfig, decode_cpus: float) -> Shares:
    """Divide what is there: a worker's stream that cannot hold one decoding task never starts."""
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), int(resources.get("GPU", 0))
    workers = config.workers or gpus or 1
    if gpus and workers > gpus:
        raise TrainingError(
            f"--cluster.workers {workers}, but the cluster has {gpus} GPUs: ask for fewer workers"
        )
    if cpus <= workers * decode_cpus:
        raise TrainingError(
            f"the cluster has {cpus:g} CPUs, and {workers} workers decode with {decode_cpus:g} "
            "each: nothing is left to train with; lower --data.decode-cpus or add machines"
        )
    # Rounded down to Ray's own precision.
    per_worker = min(1.0, math.floor((cpus / workers - decode_cpus) * 100) / 100)
    return Shares(workers, gpus > 0, per_worker, cpus / workers - per_worker)


def make_trainer(
    worker: Any, settings: dict[str, Any], shares: Shares, config: ClusterConfig, own_ray: bool
) -> TorchTrainer:
    """The Ray Train run of `worker(settings)` on every training worker."""
    return TorchTrainer(
        worker,
        train_loop_config=settings,
        torch_config=OneMachineTorchConfig() if own_ray else TorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=shares.workers,
            use_gpu=shares.use_gpu,
            resources_per_worker={
                "CPU": shares.cpus_per_worker,
                **({"GPU": 1} if shares.use_gpu else {}),
            },
        ),
        run_config=RunConfig(
            # Ray's own record of the run; checkpoints and results are in the run's folder.
            storage_path=str(Path(settings["run_dir"]) / "ray"),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )


class OneMachineTorchConfig(TorchConfig):  # type: ignore[misc]
    """Workers of one machine find each other by a file: Ray's own way opens a port to the world."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _OneMachineBackend


class _OneMachineBackend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        # torch.distributed goes on using the file, whenever DeepSpeed makes a group of workers.
        self._folder = tempfile.TemporaryDirectory(prefix="rendezvous-")
        store = str(Path(self._folder.name) / "store")
        workers = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, rank, workers, store)
                for rank in range(workers)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        self._folder.cleanup()


def _join(rank: int, workers: int, store: str) -> None:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{store}", rank=rank, world_size=workers
    )
