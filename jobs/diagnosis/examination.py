"""All checks, in the order in which a run would meet what they look at."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from data_pipeline.clips import ClipSource
from jobs.cli.config import Config
from jobs.cli.errors import ConfigError
from jobs.cli.paths import placed
from jobs.cli.places import with_places
from jobs.cluster import connection
from jobs.cluster.capacity import ClusterCapacity
from jobs.cluster.nodes import local_inputs
from jobs.diagnosis.autoscaler import Autoscaler, judge_autoscaler, look_at_autoscaler
from jobs.diagnosis.capacity import count_workers, judge_cost, judge_workers
from jobs.diagnosis.collective import judge_collective, look_at_collective
from jobs.diagnosis.data import judge_list, judge_sample, look_at_sample, read_list, take_sample
from jobs.diagnosis.finding import Finding, failure, ok
from jobs.diagnosis.gpus import judge_gpus
from jobs.diagnosis.labels import judge_labels
from jobs.diagnosis.memory import estimate, judge_memory, judge_object_store, judge_shared_memory
from jobs.diagnosis.nodes import judge_draining, judge_versions, look_at_nodes
from jobs.diagnosis.plain_errors import plain_error
from jobs.diagnosis.results import (
    judge_shared,
    judge_store,
    judge_tracking,
    look_at_store,
    mark,
    try_store,
)
from jobs.tracking.client import find_fault
from jobs.training.checks import check, check_run_folder
from jobs.training.resumed import judged_resume
from taehv.errors import TrainingError
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class Options:
    """The doctor's own options, beside those of the run."""

    start_nodes: bool = False
    """Have the autoscaler bring the nodes for the fewest workers first, so that they are seen."""
    gpu_clips_per_second: float = 40.0
    """Assumed of one GPU, for clips of 9x128x128. Nobody has measured yours: a run's own
    train/clips_per_second, divided by its workers, is the right figure."""


def examine(config: Config, options: Options) -> Iterator[Finding]:
    """The findings, each as soon as it is there. `config` is as it was parsed."""
    log.info("the config and its data")
    try:
        config = with_places(config)
    except OSError as error:
        advice = "give --cluster.storage a bucket or a folder that this machine can write"
        yield _failed("cluster.storage", error, advice)
        # What else is wrong is looked for as if the synthetic videos had come there.
        annotations = placed("data/annotations.json", config.cluster.storage)
        there = replace(config.data, annotations=annotations)
        config = with_places(replace(config, data=there))
    yield from _judge_config(config)
    source, videos = read_list(config)
    yield from judge_list(videos)
    tracked, run_dir = config.tracking.enabled, config.train.run_dir
    place, fault = find_fault(config.tracking, Path(run_dir)) if tracked else ("", "")
    yield from judge_tracking(tracked, place, fault)
    try:
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        cluster, data = config.cluster, config.data
        with (
            connection.connected(cluster, data.decode_cpus) as own_ray,
            # Left when everything has been looked at: nodes that were started for it are idle then.
            ClusterCapacity(cluster, data.decode_cpus, not own_ray, data.decode_nodes) as capacity,
        ):
            if options.start_nodes:
                yield from _start_nodes(capacity, cluster.wait_minutes)
            yield from _examine_cluster(config, options, source, own_ray)
    except (TrainingError, ray.exceptions.RayError, OSError) as error:
        yield _failed("cluster", error, "correct RAY_ADDRESS, or start the cluster")
        # What needs no cluster is worth knowing all the same.
        yield from judge_store(run_dir, [try_store(run_dir, "the driver")])
        yield from judge_sample(config, take_sample(source, "the driver") if source else None)


def _judge_config(config: Config) -> Iterator[Finding]:
    try:
        run = RunFolder(config.train.run_dir)
        check_run_folder(run, config.train.resume)
        check(judged_resume(run, config))
    except (ConfigError, TrainingError, OSError) as error:
        yield _failed("config", error, "jobs/train.py would refuse it with the same words")
    else:
        yield ok("config", f"its parts fit together; run {config.train.run_dir}")


def _check_address(address: str) -> None:
    """Raises TrainingError where nobody answers at HOST:PORT, which Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise TrainingError(f"nobody answers at {address} (RAY_ADDRESS): {error}") from error


def _failed(area: str, error: BaseException, advice: str) -> Finding:
    return failure(area, plain_error(str(error)), advice)


def _start_nodes(capacity: ClusterCapacity, minutes: float) -> Iterator[Finding]:
    log.info("waiting for nodes, at most %g minutes", minutes)
    begun = time.monotonic()
    try:
        capacity.wait_for_allocation(lambda: False)
    except TrainingError as error:
        advice = "the lines below say why, as far as it can be seen"
        yield _failed("starting nodes", error, advice)
    else:
        message = "until there was room for the fewest workers"
        yield ok("starting nodes", message, f"{time.monotonic() - begun:.0f} s")


def _examine_cluster(
    config: Config, options: Options, source: ClipSource | None, own_ray: bool
) -> Iterator[Finding]:
    """The checks that need Ray. `own_ray`: it is one of this machine, which no node can join."""
    log.info("the nodes")
    run_dir, inputs = config.train.run_dir, local_inputs(config)
    with mark(run_dir) as marked:
        alive = look_at_nodes([*inputs, *([marked] if marked else [])])
    yield from judge_draining(alive)
    nodes = [node for node in alive if not node.is_draining]
    autoscaler = Autoscaler() if own_ray else look_at_autoscaler(alive)
    workers = count_workers(config, nodes, autoscaler)
    # As many as are expected and can share the batch.
    groups = [stage.train.layout(workers=1).groups for stage in config.each_stage()]
    planned = min(workers.expected, *groups)
    own = next(node.machine for node in alive if node.is_own)
    assert own
    yield from judge_versions(own.versions, nodes)
    yield from judge_autoscaler(autoscaler)
    yield from judge_labels(config, nodes, autoscaler)
    yield from judge_workers(config, workers, autoscaler)
    yield from judge_gpus(config, nodes)
    yield from judge_shared_memory(nodes)
    yield from judge_object_store(config, nodes, planned)
    grows = bool(autoscaler.types) or autoscaler.elsewhere
    yield from judge_shared(run_dir, marked, inputs, nodes, grows)

    log.info("reading and decoding videos")
    sample = look_at_sample(config, source, nodes) if source else None
    largest = config.largest_stage()
    yield from judge_sample(largest, sample)

    log.info("where checkpoints go")
    yield from judge_store(run_dir, look_at_store(run_dir, nodes, config.cluster.train_nodes))

    log.info("the network between the nodes")
    reduction = look_at_collective(config, nodes, workers.on_gpus)
    estimated = estimate(config, planned, workers.on_gpus and config.cluster.gpu != "pretend")
    yield from judge_collective(reduction, planned, max(e.memory.gradients for e in estimated))

    log.info("memory and cost")
    yield from judge_memory(config, estimated, nodes)
    pace = options.gpu_clips_per_second
    yield from judge_cost(largest, workers, sample, nodes, autoscaler, pace)
