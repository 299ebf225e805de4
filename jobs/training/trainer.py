"""A run's driver, as jobs/train.py and each trial of a sweep have it, and Ray Train's run of the
training workers, which the driver starts once for each attempt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from data_pipeline.clips import ClipSource
from jobs.cli.config import ClusterConfig, Config
from jobs.cli.progress import TrainingProgress
from jobs.cluster.capacity import Allocation, ClusterCapacity
from jobs.cluster.nodes import check_nodes, label_selector
from jobs.tracking.tracker import Tracker
from jobs.training.checks import check_workers
from jobs.training.driver import Driver
from jobs.training.process_group import Rendezvous
from jobs.training.worker import decoded_on, train_worker
from taehv.run.run_folder import RunFolder


def make_driver(
    config: Config,
    sources: tuple[ClipSource, ClipSource],
    mailbox: Any,
    tracker: Callable[[], Tracker],
    progress: TrainingProgress,
    own_ray: bool,
    capacity: Callable[..., ClusterCapacity] = ClusterCapacity,
    trainer: Callable[[dict[str, Any], Allocation], Any] | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Driver:
    """The driver of one run, with the capacity that it has and the workers that it starts.

    Args:
        sources: of the training and the validation clips.
        own_ray: whether Ray runs on this machine alone.
        capacity: makes the capacity, with the arguments of `ClusterCapacity`.
        trainer: makes, by the settings of `train_worker`, something that has `fit` as a
            TorchTrainer has; None: a TorchTrainer.
        stop_requested: see `Driver`.
    """
    start = trainer or partial(make_trainer, train_worker, config.cluster, own_ray)

    def make_attempt(config: Config, allocation: Allocation) -> Any:
        check_workers(config, allocation.workers)
        if not own_ray:
            check_nodes(config)
        settings = {
            "config": config,
            "mailbox": mailbox,
            "sources": [decoded_on(allocation.decode_nodes, source) for source in sources],
            "decode_cpus": allocation.decode_cpus_per_worker,
            "run_dir": config.train.run_dir,
        }
        return start(settings, allocation)

    data = config.data
    return Driver(
        config,
        mailbox,
        tracker,
        progress,
        sum(len(source.videos) for source in sources),
        capacity(config.cluster, data.decode_cpus, not own_ray, data.decode_nodes),
        make_attempt,
        stop_requested,
    )


def make_trainer(
    worker: Callable[[dict[str, Any]], None],
    config: ClusterConfig,
    own_ray: bool,
    settings: dict[str, Any],
    allocation: Allocation,
) -> TorchTrainer:
    """The Ray Train run of `worker(settings)` on every training worker, once."""
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
    return Rendezvous("nccl" if on_gpu else "gloo", on_one_machine=own_ray)
