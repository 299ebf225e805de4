"""How many training workers the cluster has room for, and what each of them gets."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import ray

from jobs.cli.config import ClusterConfig
from jobs.cluster.nodes import ask_nodes, has_label, label_selector
from jobs.cluster.ray_internals import NodeRequests, available_resources_per_node, draining_nodes
from taehv.errors import TrainingError

log = logging.getLogger(__name__)

PROBE_SECONDS = 30.0
"""A live node has started a process within this, even when it is busy."""

UNRESPONSIVE_SECONDS = 120.0
"""Within this Ray finds out whether a node that did not answer is dead."""

LOG_SECONDS = 30.0
"""Between two log lines that say what the run waits for."""

GPU_RELEASE_SECONDS = 15.0
"""Ray takes up to this to free the GPUs of workers that have just ended."""

DECODE_NODE_SECONDS = 300.0
"""How long training, once it has its own nodes, waits for the first node that decodes."""


@dataclass(frozen=True)
class Allocation:
    """How many workers an attempt at a run has, and what each of them gets."""

    workers: int
    use_gpu: bool
    cpus_per_worker: float
    decode_cpus_per_worker: float
    """CPUs that the decoding tasks of one worker may hold."""
    decode_nodes: str = ""
    """Label, as KEY=VALUE, of the nodes that decode; empty: any node."""


class ClusterCapacity:
    """The cluster's capacity for training workers.

    A context: its end withdraws all requests to the autoscaler, which would otherwise keep nodes
    for minutes after their last work.

    Args:
        config: how many workers are wanted.
        decode_cpus: CPUs of one decoding task; each worker needs room for one such task.
        nodes_may_join: False on one machine.
        decode_nodes: label, as KEY=VALUE, of the nodes that decode; empty: any node.
    """

    def __init__(
        self,
        config: ClusterConfig,
        decode_cpus: float,
        nodes_may_join: bool,
        decode_nodes: str = "",
    ) -> None:
        self._config, self._decode_cpus, self._nodes_may_join = config, decode_cpus, nodes_may_join
        self._decode_nodes = decode_nodes
        self._unresponsive: set[str] = set()
        self._unresponsive_until = 0.0
        self._requests = NodeRequests() if nodes_may_join else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._requests is not None:
            self._requests.withdraw()

    def wait_for_allocation(self, cancelled: Callable[[], bool]) -> Allocation | None:
        """Wait until the fewest workers that the run accepts can start; gives what each gets.

        None where it was cancelled.

        Raises:
            TrainingError: where they cannot within `cluster.wait_minutes`.
        """
        start = next_line = time.monotonic()
        ready_since: float | None = None
        while True:
            now = time.monotonic()
            self.request_nodes(workers=0)
            fitting, startable = self.fitting_workers(), self._startable_workers()
            fewest, most = self._min_workers(), self._max_workers()
            if startable >= fewest:
                ready_since = ready_since or now
                ready_for = now - ready_since
                needs_decoder = bool(self._decode_nodes) and not self._decode_only_nodes()
                if needs_decoder and self._nodes_may_join and ready_for <= DECODE_NODE_SECONDS:
                    lacking = f"decoding waits for a node with the label {self._decode_nodes}"
                elif startable >= min(fitting, most) or ready_for >= GPU_RELEASE_SECONDS:
                    return self._allocate(min(startable, most))
                else:
                    lacking = "training waits a moment for the other GPUs"
            else:
                ready_since = None
                lacking = self._format_lacking(startable, fewest, fitting)
                self._check_timeout(lacking, now - start)
            if cancelled():
                return None
            # That Ray has yet to free what this run itself held is not worth a line.
            if next_line <= now and (fitting < fewest or now - start >= GPU_RELEASE_SECONDS):
                next_line = now + LOG_SECONDS
                log.info("%s; waited %d s", lacking, now - start)
            time.sleep(1.0)

    def _format_lacking(self, startable: int, fewest: int, fitting: int) -> str:
        taken = fitting - startable
        return (
            f"{startable} of the {fewest} workers that cluster.workers asks for can start: "
            f"missing is room for {fewest - startable} more, each {self._format_needs()}. "
            + (f"GPUs that are there, but taken: {taken}. " if taken > 0 else "")
            + self._format_labels()
        ).rstrip(". ")

    def _check_timeout(self, lacking: str, waited: float) -> None:
        if not self._nodes_may_join:
            raise TrainingError(
                f"{lacking}. Ask for fewer workers, lower --data.decode-cpus, or use a larger "
                "machine"
            )
        if waited > 60 * self._config.wait_minutes:
            raise TrainingError(
                f"{lacking}, after {self._config.wait_minutes:g} minutes "
                "(cluster.wait_minutes). Look at `ray status` for nodes that cannot be had"
            )

    def request_nodes(self, workers: int) -> None:
        """Ask the autoscaler for nodes for what is missing beside the `workers` that run. To be
        called again and again: a request expires."""
        if self._requests is None:
            return
        kind = "GPU" if self._use_gpu() else "CPU"
        more = max(0, (self._config.max_workers or 1) - workers)
        bundles = [({kind: 1.0}, label_selector(self._config.train_nodes))] * more
        if self._decode_nodes and not workers:
            # One node to begin with; decoding tasks that wait make the autoscaler add others.
            bundles.append(({"CPU": self._decode_cpus}, label_selector(self._decode_nodes)))
        self._requests.request(bundles)

    def probe_nodes(self) -> None:
        """After a failure: do not count nodes that do not answer for a while. Ray takes half a
        minute to notice that a node is dead, and would place workers on it until then."""
        self._unresponsive.clear()
        nodes = self.available_node_ids()
        if len(nodes) > 1:
            answers = ask_nodes(_do_nothing, dict.fromkeys(nodes, ()), PROBE_SECONDS)
            self._unresponsive = nodes - answers.keys()
            self._unresponsive_until = time.monotonic() + UNRESPONSIVE_SECONDS

    def could_add_workers(self, workers: int) -> bool:
        """Whether the run, which has `workers` now, wants more and there is room for them."""
        most = min(self.fitting_workers(), self._max_workers())
        if self._use_gpu():
            most = min(most, workers + self._workers_that_fit_now())
        return most > workers

    def fitting_workers(self) -> int:
        """How many workers the available nodes hold when nothing else runs there."""
        return sum(self._workers_on(node["Resources"]) for node in self._training_nodes())

    def _startable_workers(self) -> int:
        """How many workers could start now. A trial of a sweep may have some of them already."""
        return self._workers_that_fit_now()

    def _workers_that_fit_now(self) -> int:
        """Another job may have GPUs. Used CPUs are not counted: this run's own decoding holds
        some."""
        if not (self._nodes_may_join and self._use_gpu()):
            return self.fitting_workers()
        free = available_resources_per_node()
        nodes = self._training_nodes()
        return sum(self._workers_on(free.get(node["NodeID"], {})) for node in nodes)

    def available_node_ids(self) -> set[str]:
        """Ids of the nodes that are alive, answer, and are not draining."""
        return {node["NodeID"] for node in self._available_nodes()}

    def _workers_on(self, resources: dict[str, float]) -> int:
        if self._use_gpu():
            return int(resources.get("GPU", 0))
        return math.floor(resources.get("CPU", 0.0) / self._min_cpus_per_worker() + 1e-6)

    def _allocate(self, workers: int) -> Allocation:
        use_gpu, kept_for_decoding = self._use_gpu(), self._decode_cpus
        if not use_gpu:
            nodes = [node["Resources"] for node in self._training_nodes()]
            # All workers get the same, so the fullest node decides.
            cpus = min(
                node["CPU"]
                / math.ceil(workers * self._workers_on(node) / max(1, self.fitting_workers()))
                for node in nodes
                if self._workers_on(node)
            )
        elif self._decode_only_nodes():
            # Other nodes decode, so a worker gets a whole CPU where its node has one.
            cpus, kept_for_decoding = _cpus(self._training_nodes()) / workers, 0.0
        else:
            cpus = _cpus(self._available_nodes()) / workers
            if cpus <= self._decode_cpus:
                raise TrainingError(
                    f"the cluster has {cpus:g} CPUs per worker, of which decoding takes "
                    f"{self._decode_cpus:g}: lower --data.decode-cpus or add CPU nodes"
                )
        own = min(1.0, _round_down(cpus - kept_for_decoding))
        decode_nodes, decode_cpus = self._allocate_decoding(workers, cpus - own)
        return Allocation(workers, use_gpu, own, decode_cpus, decode_nodes)

    def _allocate_decoding(self, workers: int, beside: float) -> tuple[str, float]:
        """The label of the nodes that decode, and the CPUs that one worker's decoding may hold.

        beside: CPUs per worker that workers leave on their own nodes.
        """
        decoders = self._decode_only_nodes()
        if decoders:
            cpus = self._config.decode_cpus or _cpus(decoders) / workers
            return self._decode_nodes, max(cpus, self._decode_cpus)
        if self._decode_nodes:
            log.warning(
                "there is no node with the label %s (data.decode_nodes): any node decodes, until "
                "the workers start the next time. %s",
                self._decode_nodes,
                self._format_labels(),
            )
        return "", max(self._decode_cpus, min(beside, self._config.decode_cpus or beside))

    def _decode_only_nodes(self) -> list[dict[str, Any]]:
        """The nodes that are reserved for decoding; none where any node may decode."""
        return self._nodes_with(self._decode_nodes) if self._decode_nodes else []

    def _format_labels(self) -> str:
        """A sentence on the labels that nodes have; empty where no label is asked for."""
        if not (self._config.train_nodes or self._decode_nodes):
            return ""
        own = {
            f"{key}={value}"
            for node in self._available_nodes()
            for key, value in node["Labels"].items()
            if not key.startswith("ray.io/")
        }
        return f"Labels of the nodes that are there: {', '.join(sorted(own)) or 'none'}. "

    def _min_cpus_per_worker(self) -> float:
        """A worker on CPUs takes what its decoding leaves, but at least a part of a CPU."""
        return (0.5 if self._nodes_may_join else 0.01) + self._decode_cpus

    def _use_gpu(self) -> bool:
        if self._config.gpu != "auto":
            return self._config.gpu != "no"
        return any(node["Resources"].get("GPU", 0) for node in self._training_nodes())

    def _min_workers(self) -> int:
        return self._config.min_workers or 1

    def _max_workers(self) -> int:
        if self._config.max_workers:
            return self._config.max_workers
        gpus = sum(int(node["Resources"].get("GPU", 0)) for node in self._training_nodes())
        return (gpus if self._use_gpu() else 0) or 1

    def _format_needs(self) -> str:
        where = self._config.train_nodes
        there = f" on a node with the label {where}" if where else ""
        if self._use_gpu():
            return f"with a GPU{there}"
        return f"with {self._min_cpus_per_worker():g} CPUs{there}"

    def _training_nodes(self) -> list[dict[str, Any]]:
        """Available nodes that may train."""
        return self._nodes_with(self._config.train_nodes)

    def _nodes_with(self, label: str) -> list[dict[str, Any]]:
        return [node for node in self._available_nodes() if has_label(node["Labels"], label)]

    def _available_nodes(self) -> list[dict[str, Any]]:
        """Nodes that are alive, answer, and are not draining."""
        silent = self._unresponsive if time.monotonic() < self._unresponsive_until else set()
        left_out = draining_nodes() | silent
        return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in left_out]


def _do_nothing() -> None:
    """That it ran on a node shows that the node is alive."""


def _cpus(nodes: Iterable[dict[str, Any]]) -> float:
    return float(sum(node["Resources"].get("CPU", 0.0) for node in nodes))


def _round_down(cpus: float) -> float:
    """To hundredths, which Ray can count."""
    return max(0.01, math.floor(cpus * 100 + 1e-6) / 100)
