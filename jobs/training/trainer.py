"""Ray Train's run of the training workers, once: the driver starts it anew when it ends."""

from __future__ import annotations

from functools import partial
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from jobs.cli.config import ClusterConfig
from jobs.cluster.pool import Allocation, label_selector
from jobs.training.process_group import OnCluster, OnOneMachine, Rendezvous
from taehv.run.run_folder import RunFolder


def make_trainer(
    worker: Any,
    settings: dict[str, Any],
    allocation: Allocation,
    config: ClusterConfig,
    own_ray: bool,
) -> TorchTrainer:
    """The Ray Train run of `worker(settings)` on every training worker, once: the driver starts
    what dies again, with as many workers as there is room for then."""
    return TorchTrainer(
        # As part of the function, which Ray Train's controller hands on unseen: for a configuration
        # of its own it would import torch, which takes two seconds.
        partial(worker, settings),
        torch_config=_rendezvous(config, allocation, own_ray),
        scaling_config=ScalingConfig(
            num_workers=allocation.workers,
            use_gpu=allocation.use_gpu,
            # On CPUs each worker decodes beside itself; packed, they would leave no room for that.
            placement_strategy="PACK" if allocation.use_gpu else "SPREAD",
            resources_per_worker={
                "CPU": allocation.cpus_per_worker,
                **({"GPU": 1} if allocation.use_gpu else {}),
            },
            label_selector=label_selector(config.train_nodes) or None,
        ),
        run_config=RunConfig(
            # Ray's own record of the run; checkpoints and results are in the run's folder.
            storage_path=RunFolder(settings["run_dir"]).address_of("ray"),
            # Left to itself, Ray tries for ever, without a message, to start workers on a node that
            # has gone.
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
        ),
    )


def _rendezvous(config: ClusterConfig, allocation: Allocation, own_ray: bool) -> Rendezvous:
    on_gpu = allocation.use_gpu and config.gpu != "pretend"
    kind = OnOneMachine if own_ray else OnCluster
    return kind(backend="nccl" if on_gpu else "gloo")
