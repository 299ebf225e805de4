"""Where training workers can run: how many there could be now, waiting for them, nodes that go."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.config import ClusterConfig
from taehv.errors import TrainingError

log = logging.getLogger(__name__)

ANSWER_SECONDS = 30.0
"""In which a node that lives has started a process, even when it is busy."""

SILENCE_SECONDS = 120.0
"""After which Ray knows whether a node that did not answer has gone."""

TELL_SECONDS = 30.0
"""Between two lines about what is being waited for."""


@dataclass(frozen=True)
class Shares:
    """How many workers a life of a run has, and what each of them gets."""

    workers: int
    use_gpu: bool
    cpus_per_worker: float
    decode_cpus_per_worker: float
    """CPUs that the decoding tasks of one worker's stream may hold."""


class Pool:
    """The cluster's room for training workers.

    Args:
        config: how many are wanted.
        decode_cpus: CPUs of one decoding task; each worker needs one beside it.
        may_grow: whether nodes may still come; on one machine none will.
    """

    def __init__(self, config: ClusterConfig, decode_cpus: float, may_grow: bool) -> None:
        self._config, self._decode_cpus, self._may_grow = config, decode_cpus, may_grow
        self._silent: set[str] = set()
        self._silent_until = 0.0

    def wait(self, cancelled: Callable[[], bool]) -> Shares | None:
        """The shares of the next life, as soon as there is room for as many workers as must be.

        None where it was cancelled.

        Raises:
            TrainingError: where that has not come about in `cluster.wait_minutes`.
        """
        start = told = time.monotonic()
        self._request()
        while True:
            there, least = self.possible(), self._least()
            if there >= least:
                return self._shares(min(there, self._most()))
            waited = time.monotonic() - start
            lacking = (
                f"{there} of the {least} workers that cluster.workers asks for can start: "
                f"missing is room for {least - there} more, each {self._needs()}"
            )
            if not self._may_grow:
                raise TrainingError(
                    f"{lacking}. Ask for fewer workers, lower --data.decode-cpus, or use a larger "
                    "machine"
                )
            if waited > 60 * self._config.wait_minutes:
                raise TrainingError(
                    f"{lacking}, after {self._config.wait_minutes:g} minutes "
                    "(cluster.wait_minutes). Look at `ray status` for nodes that cannot be had"
                )
            if cancelled():
                return None
            if told <= time.monotonic():
                told = time.monotonic() + TELL_SECONDS
                log.info("%s; waited %d s", lacking, waited)
            time.sleep(1.0)

    def look_again(self) -> None:
        """After a failure: nodes that do not answer are not counted for a while. Ray takes half a
        minute to notice that a node has gone, and would share what is left of it out until then."""
        self._silent.clear()
        nodes = [node["NodeID"] for node in self._staying_nodes()]
        if len(nodes) < 2:
            return
        asked = {
            _answer.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(): node
            for node in nodes
        }
        _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
        self._silent |= {asked[reference] for reference in silent}
        self._silent_until = time.monotonic() + SILENCE_SECONDS
        for reference in asked.keys() - set(silent):
            try:
                ray.get(reference)
            except RayError:
                self._silent.add(asked[reference])

    def could_grow(self, workers: int) -> bool:
        """Whether more than `workers` could run, and are wanted."""
        return min(self.possible(), self._most()) > workers

    def possible(self) -> int:
        """Workers that would fit on the nodes that stay."""
        return sum(self._fit(node["Resources"]) for node in self._staying_nodes())

    def _fit(self, resources: dict[str, float]) -> int:
        if self._use_gpu():
            return int(resources.get("GPU", 0))
        # A worker on CPUs takes what decoding leaves, but at least a part of one.
        room = resources.get("CPU", 0.0) / (self._least_cpus() + self._decode_cpus)
        return math.floor(room + 1e-6)

    def _shares(self, workers: int) -> Shares:
        nodes = [node["Resources"] for node in self._staying_nodes()]
        if self._use_gpu():
            cpus = sum(node.get("CPU", 0.0) for node in nodes) / workers
            if cpus <= self._decode_cpus:
                raise TrainingError(
                    f"the cluster has {cpus:g} CPUs per worker, of which decoding takes "
                    f"{self._decode_cpus:g}: lower --data.decode-cpus or add CPU nodes"
                )
            own = min(1.0, _round_down(cpus - self._decode_cpus))
            return Shares(workers, True, own, cpus - own)
        # By the fullest node: workers are equal.
        cpus = min(
            node["CPU"] / math.ceil(workers * self._fit(node) / max(1, self.possible()))
            for node in nodes
            if self._fit(node)
        )
        own = min(1.0, _round_down(cpus - self._decode_cpus))
        return Shares(workers, False, own, cpus - own)

    def _least_cpus(self) -> float:
        """Of a training worker on the CPU."""
        return 0.5 if self._may_grow else 0.01

    def _use_gpu(self) -> bool:
        if self._config.gpu != "auto":
            return self._config.gpu == "yes"
        return any(node["Resources"].get("GPU", 0) for node in self._staying_nodes())

    def _least(self) -> int:
        return self._config.fewest_workers or 1

    def _most(self) -> int:
        if self._config.most_workers:
            return self._config.most_workers
        gpus = sum(int(node["Resources"].get("GPU", 0)) for node in self._staying_nodes())
        return (gpus if self._use_gpu() else 0) or 1

    def _needs(self) -> str:
        if self._use_gpu():
            return "with a GPU"
        return f"with {self._least_cpus() + self._decode_cpus:g} CPUs"

    def _staying_nodes(self) -> list[dict[str, Any]]:
        """Nodes that live, answer, and have not been given notice."""
        silent = self._silent if time.monotonic() < self._silent_until else set()
        left = going_nodes() | silent
        return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in left]

    def _request(self) -> None:
        """Tell the autoscaler what is wanted; it keeps that in mind while the job runs."""
        if self._may_grow and self._config.most_workers:
            kind = "GPU" if self._use_gpu() else "CPU"
            request_resources(bundles=[{kind: 1.0}] * self._config.most_workers)


def going_nodes() -> set[str]:
    """Ids of nodes that have been given notice."""
    # Ray tells a training worker through a collective; the driver must know without one.
    return set(ray_state.get_draining_nodes())


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _answer() -> None:
    """What a node that lives can run."""


def _round_down(cpus: float) -> float:
    """To a precision that Ray has."""
    return max(0.01, math.floor(cpus * 100 + 1e-6) / 100)
