"""Where training workers can run, and decoding: how many there could be now, waiting for them,
nodes that go."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray._private.state import state as ray_state
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cli.config import ClusterConfig
from jobs.cluster.autoscaling import Requests
from taehv.errors import TrainingError

log = logging.getLogger(__name__)

ANSWER_SECONDS = 30.0
"""In which a node that lives has started a process, even when it is busy."""

SILENCE_SECONDS = 120.0
"""After which Ray knows whether a node that did not answer has gone."""

TELL_SECONDS = 30.0
"""Between two lines about what is being waited for."""

SETTLE_SECONDS = 15.0
"""In which GPUs are free again that a worker held until a moment ago."""

DECODER_SECONDS = 300.0
"""How long training waits, once its own nodes are there, for the first node that decodes."""


@dataclass(frozen=True)
class Shares:
    """How many workers a life of a run has, and what each of them gets."""

    workers: int
    use_gpu: bool
    cpus_per_worker: float
    decode_cpus_per_worker: float
    """CPUs that the decoding tasks of one worker's stream may hold."""
    decode_nodes: str = ""
    """Label, as KEY=VALUE, of the nodes that decode; empty: any."""


class Pool:
    """The cluster's room for training workers.

    As a context it ends with nothing more being asked of the autoscaler: where nobody took that
    back, nodes would stay for minutes after their last work.

    Args:
        config: how many are wanted.
        decode_cpus: CPUs of one decoding task; each worker needs one beside it.
        may_grow: whether nodes may still come; on one machine none will.
        decode_nodes: label, as KEY=VALUE, of the nodes that decode; empty: any.
    """

    def __init__(
        self, config: ClusterConfig, decode_cpus: float, may_grow: bool, decode_nodes: str = ""
    ) -> None:
        self._config, self._decode_cpus, self._may_grow = config, decode_cpus, may_grow
        self._decode_nodes = decode_nodes
        self._silent: set[str] = set()
        self._silent_until = 0.0
        self._requests = Requests() if may_grow else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._requests is not None:
            self._requests.withdraw()

    def wait(self, cancelled: Callable[[], bool]) -> Shares | None:
        """The shares of the next life, as soon as there is room for as many workers as must be.

        None where it was cancelled.

        Raises:
            TrainingError: where that has not come about in `cluster.wait_minutes`.
        """
        start = told = time.monotonic()
        ready: float | None = None
        while True:
            now = time.monotonic()
            self.request(workers=0)
            there, least = self.possible(), self._least()
            room = self._room()
            if room >= least:
                ready = ready or now
                settled = room >= min(there, self._most()) or now - ready >= SETTLE_SECONDS
                wanted = bool(self._decode_nodes) and not self._decoders()
                if not wanted or not self._may_grow or now - ready > DECODER_SECONDS:
                    if settled:
                        return self._shares(min(room, self._most()))
                    lacking = "a moment is waited for the other GPUs"
                else:
                    lacking = f"decoding waits for a node with the label {self._decode_nodes}"
            else:
                ready = None
                lacking = (
                    f"{room} of the {least} workers that cluster.workers asks for can start: "
                    f"missing is room for {least - room} more, each {self._needs()}. "
                    + (f"GPUs that are there, but taken: {there - room}. " if there > room else "")
                    + self._labels_there()
                ).rstrip(". ")
                self._check_patience(lacking, now - start)
            if cancelled():
                return None
            # What this run itself held a moment ago is not worth a word.
            if told <= now and (there < least or now - start >= SETTLE_SECONDS):
                told = now + TELL_SECONDS
                log.info("%s; waited %d s", lacking, now - start)
            time.sleep(1.0)

    def _check_patience(self, lacking: str, waited: float) -> None:
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

    def request(self, workers: int) -> None:
        """Tell the autoscaler what is wanted beside the `workers` that run, which ask for
        themselves. To be called every now and then: it forgets."""
        if self._requests is None:
            return
        kind = "GPU" if self._use_gpu() else "CPU"
        more = max(0, (self._config.most_workers or 1) - workers)
        bundles = [({kind: 1.0}, label_selector(self._config.train_nodes))] * more
        if self._decode_nodes and not workers:
            # The first, beside the training nodes; decoding tasks that wait bring the others.
            bundles.append(({"CPU": self._decode_cpus}, label_selector(self._decode_nodes)))
        self._requests.ask(bundles)

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
        """Whether more than the `workers` that run could, and are wanted."""
        room = workers + self._free() if self._use_gpu() else self.possible()
        return min(room, self.possible(), self._most()) > workers

    def possible(self) -> int:
        """Workers that would fit on the nodes that stay."""
        return sum(self._fit(node["Resources"]) for node in self._training_nodes())

    def _room(self) -> int:
        """Workers that could start now."""
        return self._free()

    def _free(self) -> int:
        """Workers for which GPUs are free: they may be another job's. CPUs are not counted so: they
        are shared with all that decodes, and so with this run itself."""
        if not (self._may_grow and self._use_gpu()):
            return self.possible()
        free = ray_state.available_resources_per_node()
        return sum(self._fit(free.get(node["NodeID"], {})) for node in self._training_nodes())

    def staying(self) -> set[str]:
        """Ids of the nodes that live, answer, and have not been given notice."""
        return {node["NodeID"] for node in self._staying_nodes()}

    def _fit(self, resources: dict[str, float]) -> int:
        if self._use_gpu():
            return int(resources.get("GPU", 0))
        # A worker on CPUs takes what decoding leaves, but at least a part of one.
        room = resources.get("CPU", 0.0) / (self._least_cpus() + self._decode_cpus)
        return math.floor(room + 1e-6)

    def _shares(self, workers: int) -> Shares:
        if self._use_gpu():
            return self._shares_beside_gpus(workers)
        nodes = [node["Resources"] for node in self._training_nodes()]
        # By the fullest node: workers are equal.
        cpus = min(
            node["CPU"] / math.ceil(workers * self._fit(node) / max(1, self.possible()))
            for node in nodes
            if self._fit(node)
        )
        own = min(1.0, _round_down(cpus - self._decode_cpus))
        decode_nodes, decode_cpus = self._decoding(workers, cpus - own)
        return Shares(workers, False, own, decode_cpus, decode_nodes)

    def _shares_beside_gpus(self, workers: int) -> Shares:
        nodes = self._training_nodes()
        if self._decoders():
            # Decoding is elsewhere, and leaves a worker the CPU that it wants.
            cpus = sum(node["Resources"].get("CPU", 0.0) for node in nodes) / workers
            own = min(1.0, _round_down(cpus))
        else:
            nodes = self._staying_nodes()
            cpus = sum(node["Resources"].get("CPU", 0.0) for node in nodes) / workers
            if cpus <= self._decode_cpus:
                raise TrainingError(
                    f"the cluster has {cpus:g} CPUs per worker, of which decoding takes "
                    f"{self._decode_cpus:g}: lower --data.decode-cpus or add CPU nodes"
                )
            own = min(1.0, _round_down(cpus - self._decode_cpus))
        decode_nodes, decode_cpus = self._decoding(workers, cpus - own)
        return Shares(workers, True, own, decode_cpus, decode_nodes)

    def _decoding(self, workers: int, beside: float) -> tuple[str, float]:
        """The label of the nodes that decode, and the CPUs that one worker's stream may hold.

        `beside`: CPUs that a worker leaves on its own node.
        """
        decoders = self._decoders()
        if decoders:
            there = sum(node["Resources"].get("CPU", 0.0) for node in decoders) / workers
            cpus = max(self._config.decode_cpus, self._decode_cpus)
            return self._decode_nodes, cpus if self._config.decode_cpus else max(cpus, there)
        if self._decode_nodes:
            log.warning(
                "there is no node with the label %s (data.decode_nodes): any node decodes, until "
                "the workers start the next time. %s",
                self._decode_nodes,
                self._labels_there(),
            )
        return "", max(self._decode_cpus, min(beside, self._config.decode_cpus or beside))

    def _decoders(self) -> list[dict[str, Any]]:
        """The nodes set aside for decoding; none where any may decode."""
        if not self._decode_nodes:
            return []
        return [
            node for node in self._staying_nodes() if has_label(node["Labels"], self._decode_nodes)
        ]

    def _labels_there(self) -> str:
        """A sentence on the labels that nodes do have, where one is asked for."""
        if not (self._config.train_nodes or self._decode_nodes):
            return ""
        own = {
            f"{key}={value}"
            for node in self._staying_nodes()
            for key, value in node["Labels"].items()
            if not key.startswith("ray.io/")
        }
        return f"Labels of the nodes that are there: {', '.join(sorted(own)) or 'none'}. "

    def _least_cpus(self) -> float:
        """Of a training worker on the CPU."""
        return 0.5 if self._may_grow else 0.01

    def _use_gpu(self) -> bool:
        if self._config.gpu != "auto":
            return self._config.gpu != "no"
        return any(node["Resources"].get("GPU", 0) for node in self._training_nodes())

    def _least(self) -> int:
        return self._config.fewest_workers or 1

    def _most(self) -> int:
        if self._config.most_workers:
            return self._config.most_workers
        gpus = sum(int(node["Resources"].get("GPU", 0)) for node in self._training_nodes())
        return (gpus if self._use_gpu() else 0) or 1

    def _needs(self) -> str:
        where = self._config.train_nodes
        there = f" on a node with the label {where}" if where else ""
        if self._use_gpu():
            return f"with a GPU{there}"
        return f"with {self._least_cpus() + self._decode_cpus:g} CPUs{there}"

    def _training_nodes(self) -> list[dict[str, Any]]:
        """Staying nodes that may train."""
        nodes = self._staying_nodes()
        where = self._config.train_nodes
        return [node for node in nodes if has_label(node["Labels"], where)] if where else nodes

    def _staying_nodes(self) -> list[dict[str, Any]]:
        """Nodes that live, answer, and have not been given notice."""
        silent = self._silent if time.monotonic() < self._silent_until else set()
        left = going_nodes() | silent
        return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in left]


def label_selector(label: str) -> dict[str, str]:
    """Ray's form of KEY=VALUE; of nothing: any node."""
    key, _, value = label.partition("=")
    return {key: value} if key else {}


def has_label(labels: Mapping[str, str], label: str) -> bool:
    """Whether KEY=VALUE is among a node's labels; nothing is among any."""
    return label_selector(label).items() <= labels.items()


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
