"""All checks, in the order in which a run would meet what they look at."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from data_pipeline.clips import ClipSource, open_sources
from data_pipeline.errors import DataError
from jobs.cli.config import Config
from jobs.cli.errors import ConfigError
from jobs.cli.paths import placed
from jobs.cli.places import with_places
from jobs.cluster import connection
from jobs.cluster.capacity import ClusterCapacity
from jobs.cluster.nodes import local_inputs
from jobs.diagnosis.autoscaler import Autoscaler, judge_autoscaler, look_at_autoscaler
from jobs.diagnosis.capacity import Workers, count_workers, judge_workers
from jobs.diagnosis.collective import judge_collective, look_at_collective
from jobs.diagnosis.cost import judge_cost
from jobs.diagnosis.data import (
    Sample,
    VideoList,
    judge_list,
    judge_sample,
    look_at_sample,
    take_sample,
)
from jobs.diagnosis.finding import Finding, Level
from jobs.diagnosis.gpus import judge_gpus
from jobs.diagnosis.labels import judge_labels
from jobs.diagnosis.memory import estimate, judge_memory
from jobs.diagnosis.nodes import Node, judge_going, look_at_nodes
from jobs.diagnosis.results import judge_shared, judge_store, look_at_store, mark, try_store
from jobs.diagnosis.shared_memory import judge_object_store, judge_shared_memory
from jobs.diagnosis.tracking import judge_tracking
from jobs.diagnosis.versions import judge_versions
from jobs.diagnosis.words import plain_error
from jobs.tracking.tracker import find_fault
from jobs.training.checks import check, check_run_folder
from jobs.training.resumed import judged_resume
from taehv.errors import TrainingError
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)

KNOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Options:
    """What the doctor is told beside the run's own config."""

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
    source, videos = _open(config)
    yield from judge_list(videos)
    if config.tracking.enabled:
        place, fault = find_fault(config.tracking, Path(config.train.run_dir))
    else:
        place = fault = ""
    yield from judge_tracking(config.tracking.enabled, place, fault)
    try:
        _knock(os.environ.get("RAY_ADDRESS", ""))
        with connection.connected(config.cluster, config.data.decode_cpus) as own_ray:
            yield from _Cluster(config, options, source, own_ray).examine()
    except (TrainingError, ray.exceptions.RayError, OSError) as error:
        yield _failed("cluster", error, "correct RAY_ADDRESS, or start the cluster")
        # What needs no cluster is worth knowing all the same.
        yield from judge_store(
            config.train.run_dir, [try_store(config.train.run_dir, "the driver")]
        )
        yield from judge_sample(config, take_sample(source, "the driver") if source else None)


def _knock(address: str) -> None:
    """Raises TrainingError where nobody answers at HOST:PORT, which Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
        except OSError as error:
            raise TrainingError(f"nobody answers at {address} (RAY_ADDRESS): {error}") from error


def _judge_config(config: Config) -> Iterator[Finding]:
    try:
        run = RunFolder(config.train.run_dir)
        check_run_folder(run, config.train.resume)
        check(judged_resume(run, config))
    except (ConfigError, TrainingError, OSError) as error:
        yield _failed("config", error, "jobs/train.py would refuse it with the same words")
    else:
        yield Finding(Level.OK, "config", "", f"its parts fit together; run {config.train.run_dir}")


def _open(config: Config) -> tuple[ClipSource | None, VideoList]:
    annotations = config.data.annotations
    begun = time.perf_counter()
    try:
        training, validation = open_sources(
            config.data, config.train.seed, config.train.global_batch_size
        )
    except (DataError, OSError) as error:
        return None, VideoList(annotations, error=str(error))
    count = len(training.videos) + len(validation.videos)
    return training, VideoList(annotations, count, time.perf_counter() - begun)


def _failed(area: str, error: BaseException, advice: str) -> Finding:
    return Finding(Level.FAILURE, area, "", plain_error(str(error)), advice)


class _Cluster:
    """The checks that need Ray."""

    def __init__(
        self, config: Config, options: Options, source: ClipSource | None, own_ray: bool
    ) -> None:
        self.config, self.options, self.source, self.own_ray = config, options, source, own_ray
        self.nodes: list[Node] = []
        self.autoscaler = Autoscaler()
        self.workers = Workers(0, 0, 1, 1, False)
        self.sample: Sample | None = None

    def examine(self) -> Iterator[Finding]:
        cluster_config, data = self.config.cluster, self.config.data
        # Left when everything has been looked at: nodes that were started for it are idle then.
        with ClusterCapacity(
            cluster_config, data.decode_cpus, not self.own_ray, data.decode_nodes
        ) as capacity:
            if self.options.start_nodes:
                yield from self._start_nodes(capacity)
            yield from self._examine()

    def _examine(self) -> Iterator[Finding]:
        parts: dict[str, Callable[[], Iterator[Finding]]] = {
            "the nodes": self._nodes,
            "reading and decoding videos": self._data,
            "where checkpoints go": self._store,
            "the network between the nodes": self._collective,
            "memory and cost": self._reckon,
        }
        for what, part in parts.items():
            log.info("%s", what)
            yield from part()

    def _start_nodes(self, capacity: ClusterCapacity) -> Iterator[Finding]:
        log.info("waiting for nodes, at most %g minutes", self.config.cluster.wait_minutes)
        begun = time.monotonic()
        try:
            capacity.wait_for_allocation(lambda: False)
        except TrainingError as error:
            advice = "the lines below say why, as far as it can be seen"
            yield _failed("starting nodes", error, advice)
        else:
            figure = f"{time.monotonic() - begun:.0f} s"
            message = "until there was room for the fewest workers"
            yield Finding(Level.OK, "starting nodes", figure, message)

    def _nodes(self) -> Iterator[Finding]:
        config, run_dir = self.config, self.config.train.run_dir
        inputs = local_inputs(config)
        with mark(run_dir) as marked:
            nodes = look_at_nodes([*inputs, *([marked] if marked else [])])
        yield from judge_going(nodes)
        self.nodes = [node for node in nodes if not node.is_going]
        self.autoscaler = Autoscaler() if self.own_ray else look_at_autoscaler(nodes)
        self.workers = count_workers(config, self.nodes, self.autoscaler)
        own = next(node.machine for node in nodes if node.is_own)
        assert own
        yield from judge_versions(own.versions, self.nodes)
        yield from judge_autoscaler(self.autoscaler)
        yield from judge_labels(config, self.nodes, self.autoscaler)
        yield from judge_workers(config, self.workers, self.nodes, self.autoscaler)
        yield from judge_gpus(config, self.nodes)
        yield from judge_shared_memory(self.nodes)
        yield from judge_object_store(config, self.nodes, self._planned_workers())
        grows = bool(self.autoscaler.types) or self.autoscaler.elsewhere
        yield from judge_shared(run_dir, marked, inputs, self.nodes, grows)

    def _data(self) -> Iterator[Finding]:
        if self.source is not None:
            self.sample = look_at_sample(self.config, self.source, self.nodes)
        yield from judge_sample(self.config, self.sample)

    def _store(self) -> Iterator[Finding]:
        run_dir = self.config.train.run_dir
        tests = look_at_store(run_dir, self.nodes, self.config.cluster.train_nodes)
        yield from judge_store(run_dir, tests)

    def _collective(self) -> Iterator[Finding]:
        reduction = look_at_collective(self.config, self.nodes, self.workers.on_gpus)
        estimated = estimate(self.config, self._planned_workers(), self._on_real_gpus())
        yield from judge_collective(reduction, self._planned_workers(), estimated.memory.gradients)

    def _reckon(self) -> Iterator[Finding]:
        estimated = estimate(self.config, self._planned_workers(), self._on_real_gpus())
        yield from judge_memory(self.config, estimated, self.nodes)
        yield from judge_cost(
            self.config,
            self.workers,
            self.sample,
            self.nodes,
            self.autoscaler,
            self.options.gpu_clips_per_second,
        )

    def _planned_workers(self) -> int:
        """As many as are expected and can share the batch."""
        train = self.config.train
        return min(self.workers.expected, train.global_batch_size // train.slots_per_group)

    def _on_real_gpus(self) -> bool:
        return self.workers.on_gpus and self.config.cluster.gpu != "pretend"
